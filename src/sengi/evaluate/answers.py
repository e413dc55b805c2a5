"""Short answers: the model writes, greedily, and what it wrote is compared with the accepted answers."""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sengi.evaluate.prompts import Prompts, stop_ids
from sengi.evaluate.questions import Question

FINAL_PUNCTUATION = ".!?,;:…。！？"


def normalize_answer(text: str) -> str:
    """What is compared of an answer: no case, no outer or repeated white space, no final punctuation.

    >>> normalize_answer("  The  Red House. ")
    'the red house'
    """
    text = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    # White space that stood before the punctuation goes with it.
    return text.rstrip(FINAL_PUNCTUATION + " ")


def is_exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether an answer equals one of the accepted ones after normalization; an empty answer never does.

    Args:
        prediction: what the model wrote.
        answers: accepted texts.
    """
    # An accepted answer of punctuation only ("?") is compared as it stands.
    given = normalize_answer(prediction) or prediction.strip()
    return bool(given) and any(given == (normalize_answer(answer) or answer.strip()) for answer in answers)


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 32,
    batch_tokens: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Let the model answer each question greedily, one user turn each.

    Args:
        model: in evaluation mode, with an attention function that takes a padding mask (``sdpa``, ``eager``).
        tokenizer: with a chat template.
        questions: their ``question`` is asked; choices are not shown.
        max_new_tokens: longest answer, in tokens.
        batch_tokens: most tokens of a batch: rows times (longest question + longest answer).
        progress: called with the number of questions that were answered.

    Returns:
        The answers' texts without special tokens, in the order of the questions.
    """
    prompts = Prompts(tokenizer)
    ids = [prompts.ids(prompts.question(question.question)) for question in questions]
    stops = stop_ids(model, tokenizer)
    answers = [""] * len(questions)
    # Longest first: the batch that needs the most memory fails at once or never.
    order = sorted(range(len(ids)), key=lambda index: (-len(ids[index]), index))
    while order:
        rows = max(1, batch_tokens // (len(ids[order[0]]) + max_new_tokens))
        batch, order = order[:rows], order[rows:]
        for index, answer in zip(batch, _generate(model, [ids[i] for i in batch], stops, max_new_tokens), strict=True):
            answers[index] = prompts.decode(answer).strip()
        if progress:
            progress(len(batch))
    return answers


@torch.inference_mode()
def _generate(
    model: PreTrainedModel, prompts: list[list[int]], stops: list[int], max_new_tokens: int
) -> list[list[int]]:
    """Greedy continuation of each prompt, up to and without the first stop token."""
    width = max(map(len, prompts))
    pad = stops[0] if stops else 0
    input_ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, ids in enumerate(prompts):
        # On the left, so that the answer follows its question without a gap.
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    generating: Any = model  # transformers types its models as callable modules without this method
    with _plain_generation(model):
        output = generating.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops or None, pad_token_id=pad
            ),
        )
    answers = output[:, width:].tolist()
    return [ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))] for ids in answers]


@contextlib.contextmanager
def _plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Hide the model's own generation settings: its repetition penalty or temperature is not what is measured."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def stream_reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
) -> Iterator[str]:
    """Write the next assistant turn of a conversation, piece by piece.

    Args:
        model: in evaluation mode.
        tokenizer: with a chat template.
        messages: the conversation, ending with the user's turn.
        max_new_tokens: longest reply, in tokens.
        temperature: 0 takes the likeliest token; above, tokens are drawn from the distribution at this temperature.

    Yields:
        Pieces of text that joined are the reply; a character of several tokens comes when it is whole.
    """
    prompts = Prompts(tokenizer)
    stops = set(stop_ids(model, tokenizer))
    inputs = torch.tensor([prompts.ids(prompts.text(messages))], device=model.device)
    cache: Any = None
    reply: list[int] = []
    shown = ""
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            output = model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = output.past_key_values, output.logits[0, -1]
            if temperature > 0:
                inputs = torch.multinomial((logits.float() / temperature).softmax(-1), 1)[None]
            else:
                inputs = logits.argmax(-1)[None, None]
        if int(inputs) in stops:
            break
        reply.append(int(inputs))
        text = prompts.decode(reply)
        # The replacement character at the end stands for bytes whose character is not complete yet.
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    text = prompts.decode(reply)
    if len(text) > len(shown):
        yield text[len(shown) :]
