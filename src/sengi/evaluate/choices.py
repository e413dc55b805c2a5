"""Multiple choice by likelihood: the choice that the model finds likeliest as its answer.

The user's turn is the question alone; each choice's text is scored as the beginning of the assistant's turn.
Lettered options are not shown: picking a letter is a skill of its own that small models lack, while the
likelihood of the text moves as soon as the fact is learned. Two scores come of the same numbers:

- per byte (the main one; lm-eval's ``acc_norm``): the sum of log-probabilities over the choice's UTF-8 bytes, so
  that a long choice is not punished for its length and tokenizers can be compared;
- sum (lm-eval's ``acc``): the plain sum.

The question is computed once for all its choices (:mod:`sengi.inference.loglikelihood`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.evaluate.kept_answers import KeptAnswers, advancing
from sengi.evaluate.questions import Question
from sengi.inference.prompts import Prompts


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """Log-likelihoods of one question's choices.

    Attributes:
        sums: natural log-probability of each choice's tokens, in the order of the choices.
        per_byte: the same over the UTF-8 bytes of the choice.
    """

    sums: tuple[float, ...]
    per_byte: tuple[float, ...]


def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
    kept: KeptAnswers | None = None,
) -> list[ChoiceScores]:
    """Score every choice of every question.

    Args:
        model: in evaluation mode.
        tokenizer: with a chat template.
        questions: all with ``choices``.
        batch_tokens: most new tokens in one forward call; None: as many as pay on the device.
        progress: called with the number of questions that were scored.
        kept: what this model has answered already; None asks everything.

    Returns:
        One entry a question, in the order given; it does not depend on the batches but for rounding.
    """
    prompts = Prompts(tokenizer)
    tokenized = [tokenize_choices(prompts, question) for question in questions]
    requests = [(prefix, choice) for prefix, choices in tokenized for choice in choices]
    advance = advancing(progress, len(questions))
    scores = iter((kept or KeptAnswers()).log_likelihoods(model, requests, batch_tokens, advance))
    results = []
    for question in questions:
        texts = question.choices or ()
        sums = tuple(islice(scores, len(texts)))
        per_byte = tuple(total / len(text.encode()) for total, text in zip(sums, texts, strict=True))
        results.append(ChoiceScores(sums, per_byte))
    return results


def tokenize_choices(prompts: Prompts, question: Question) -> tuple[list[int], list[list[int]]]:
    """Tokens of prompt and choices together, as in training, cut where the choices' sequences part from the prompt's.

    A tokenizer may join the end of the prompt with the start of a choice. The cut is then the last place where the
    prompt and all the choices agree, so that all choices are conditional on the same tokens.

    Returns:
        The prefix that all choices share, and what each adds to it.
    """
    prompt = prompts.question(question.question)
    prompt_ids = prompts.ids(prompt)
    whole = [prompts.ids(prompt + choice) for choice in question.choices or ()]
    cut = min(_common_prefix(prompt_ids, ids) for ids in whole)
    # One token at least must be left to predict from, and one of every choice to predict.
    cut = max(1, min(cut, *(len(ids) - 1 for ids in whole)))
    return prompt_ids[:cut], [ids[cut:] for ids in whole]


def _common_prefix(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
