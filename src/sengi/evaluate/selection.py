"""Choose a checkpoint, and say honestly how good it is: the best of many looks better than it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sengi.statistics.differences import is_binary, paired_difference
from sengi.statistics.intervals import (
    Interval,
    bootstrap_interval,
    finite_vector,
    positive_weights,
    ratio_interval,
    wilson_interval,
)

FEWEST = 10  # questions that can be split into two halves that tell anything


@dataclass(frozen=True, slots=True)
class Choice:
    """A checkpoint and its score.

    Attributes:
        checkpoint: its position among the checkpoints.
        score: its score with the 95% interval.
        corrected: whether ``score`` is of questions that had no part in choosing it.
    """

    checkpoint: int
    score: Interval
    corrected: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """The best of several checkpoints, chosen in three ways.

    Attributes:
        best: chosen on one half of the questions, scored on the other: the number to report.
        swapped: the same with the halves swapped. Another checkpoint here means that the questions cannot tell which
            is best. The two are not averaged: they may be scores of two checkpoints.
        naive: chosen and scored on all questions. Not corrected: biased in favour of the chosen one.
    """

    best: Choice
    swapped: Choice
    naive: Choice


@dataclass(frozen=True, slots=True)
class Peak:
    """When a run was at its best.

    Attributes:
        checkpoint: position of the best score, the earliest of equal ones.
        samples: samples seen by then: the paper's "samples to peak".
        within_noise: position of the first checkpoint that is not shown to be worse than the best; None without
            results of single questions.
        samples_within_noise: samples seen by then.
    """

    checkpoint: int
    samples: int
    within_noise: int | None = None
    samples_within_noise: int | None = None


def select_checkpoint(
    results: ArrayLike, *, weights: ArrayLike | None = None, higher_is_better: bool = True, seed: int = 0
) -> Selection:
    """Choose the checkpoint with the best mean, corrected for choosing the best of many by a split of the questions.

    Args:
        results: of each checkpoint on each question, shape (checkpoints, questions), at least 10 questions.
        weights: of the questions in the mean, shape (questions,); for example the tokens of a mean loss.
        higher_is_better: whether the highest mean is the best.
        seed: of the split into halves.

    Raises:
        ValueError: shapes do not fit, too few questions, or a value that is not finite.
    """
    table, weight = _table(results), None if weights is None else finite_vector(weights, "weights")
    count = table.shape[1]
    if count < FEWEST:
        raise ValueError(f"{count} questions: need {FEWEST} or more to choose on one half and report on the other")
    if weight is not None:
        positive_weights(weight, table[0])
    order = np.random.default_rng(seed).permutation(count)
    one, other, everything = np.sort(order[: count // 2]), np.sort(order[count // 2 :]), np.arange(count)

    def choose(chosen_on: NDArray[np.int64], scored_on: NDArray[np.int64]) -> Choice:
        means = np.average(table[:, chosen_on], axis=1, weights=None if weight is None else weight[chosen_on])
        checkpoint = int(np.argmax(means if higher_is_better else -means))
        of_chosen = None if weight is None else weight[scored_on]
        corrected = chosen_on is not scored_on
        return Choice(checkpoint, _score(table[checkpoint, scored_on], of_chosen), corrected)

    return Selection(choose(one, other), choose(other, one), choose(everything, everything))


def samples_to_peak(
    samples_seen: Sequence[int],
    scores: Sequence[float],
    *,
    results: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    higher_is_better: bool = True,
) -> Peak:
    """Samples seen at the best checkpoint, and at the first one that is not shown to be worse.

    The best of many noisy scores may lie far behind the point from which nothing is gained; the second number says so.

    Args:
        samples_seen: at each checkpoint.
        scores: of each checkpoint, same order.
        results: of each checkpoint on each question, shape (checkpoints, questions), for the second number: the 95%
            interval of the paired difference to the best holds 0, or is not known for want of questions.
        weights: of the questions, as in :func:`select_checkpoint`.
        higher_is_better: whether the highest score is the best.

    Raises:
        ValueError: lengths differ, nothing is given, or a value is not finite.
    """
    values = finite_vector(scores, "scores")
    if len(samples_seen) != len(values):
        raise ValueError(f"{len(samples_seen)} numbers of samples for {len(values)} scores: need one for each")
    best = int(np.argmax(values if higher_is_better else -values))
    if results is None:
        return Peak(best, int(samples_seen[best]))
    table = _table(results)
    if len(table) != len(values):
        raise ValueError(f"results of {len(table)} checkpoints for {len(values)} scores: need one row for each")
    order = sorted(range(len(values)), key=lambda k: samples_seen[k])
    first = next(k for k in order if k == best or _alike(table[k], table[best], weights))
    return Peak(best, int(samples_seen[best]), first, int(samples_seen[first]))


def _alike(one: NDArray[np.float64], best: NDArray[np.float64], weights: ArrayLike | None) -> bool:
    difference = paired_difference(one, best, weights=weights).difference
    return not (difference.low > 0 or difference.high < 0)  # ends that are NaN show nothing


def _score(values: NDArray[np.float64], weights: NDArray[np.float64] | None) -> Interval:
    if weights is not None:
        return ratio_interval(values, weights)
    return wilson_interval(int(values.sum()), len(values)) if is_binary(values) else bootstrap_interval(values)


def _table(results: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(results, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"results: need one row a checkpoint and one column a question, got shape {table.shape}")
    if not np.isfinite(table).all():
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise ValueError(f"results[{row}, {column}] is not finite: leave out questions that one checkpoint lacks")
    return table
