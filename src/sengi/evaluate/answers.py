"""Short answers: the model writes, greedily, and what it wrote is compared with the accepted answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.evaluate.kept_answers import KeptAnswers, advancing
from sengi.evaluate.questions import Question
from sengi.inference.generation_request import GenerationRequest
from sengi.inference.prompts import Prompts

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
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
    kept: KeptAnswers | None = None,
) -> list[str]:
    """Let the model answer each question greedily, one user turn each.

    Args:
        model: in evaluation mode.
        tokenizer: with a chat template.
        questions: their ``question`` is asked; choices are not shown.
        max_new_tokens: longest answer, in tokens.
        batch_tokens: tokens that are kept at a time while texts are written; None: as many as pay on the device.
        progress: called with the number of questions that were answered.
        kept: what this model has answered already; None asks everything.

    Returns:
        The answers' texts without special tokens, in the order of the questions.
    """
    prompts = Prompts(tokenizer)
    requests = [
        GenerationRequest(prompts.ids(prompts.question(question.question)), max_new_tokens) for question in questions
    ]
    advance = advancing(progress, len(questions))
    texts = (kept or KeptAnswers()).texts(model, tokenizer, requests, batch_tokens, advance)
    return [text.strip() for text in texts]
