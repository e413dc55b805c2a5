"""Metrics by their names: which way is better, and what one question adds to the score of many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# All others are better when higher.
LOWER_IS_BETTER = frozenset(
    {"loss", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter", "wer", "mae"}
    | {"judge_mean_absolute_difference", "judge_noise", "judge_noise_of_mean"}
)
# lm-eval keeps (log-likelihood, size) of a text for these: their logarithm is a weighted mean over texts.
_LOG_OF = {"word_perplexity": 1.0, "byte_perplexity": 1.0, "bits_per_byte": math.log(2)}


def is_higher_better(metric: str) -> bool:
    """Whether more of ``metric`` (with or without its filter, as in ``exact_match,strict-match``) is better."""
    return metric.partition(",")[0].removeprefix("log ") not in LOWER_IS_BETTER


def is_row_higher_better(row: Mapping[str, Any]) -> bool:
    """Whether more is better in a row of scores: as lm-eval's task says where it is from there, else by the name."""
    said = row.get("higher_is_better")
    return said if isinstance(said, bool) else is_higher_better(str(row["metric"]))


def question_result(metric: str, value: Any) -> tuple[str, float, float] | None:
    """What one question adds to a score.

    Args:
        metric: lm-eval's name, without filter.
        value: as lm-eval writes it for one question: a number, a list of truths (instructions followed), or the
            log-likelihood of a text with its size.

    Returns:
        Name of the mean that can be compared, the question's value and its weight in that mean; None where the
        score is no mean over questions (f1, mcc, bleu) or the value is no number.
    """
    if isinstance(value, list):
        if value and all(isinstance(one, bool) for one in value):
            return metric, sum(value) / len(value), float(len(value))
        if metric in _LOG_OF and len(value) == 2 and all(_is_number(one) for one in value) and value[1] > 0:
            name = metric if metric == "bits_per_byte" else f"log {metric}"
            return name, -value[0] / value[1] / _LOG_OF[metric], float(value[1])
        return None
    if isinstance(value, bool):
        return metric, float(value), 1.0
    if not _is_number(value):
        return None
    return ("log perplexity", -float(value), 1.0) if metric == "perplexity" else (metric, float(value), 1.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
