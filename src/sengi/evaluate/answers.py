"""Short answers: the model writes, greedily, and what it wrote is compared with the accepted answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.evaluate.questions import Question
from sengi.inference.generation import generate_greedy
from sengi.inference.prompts import Prompts, stop_ids

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
        for index, answer in zip(
            batch, generate_greedy(model, [ids[i] for i in batch], stops, max_new_tokens), strict=True
        ):
            answers[index] = prompts.decode(answer).strip()
        if progress:
            progress(len(batch))
    return answers
