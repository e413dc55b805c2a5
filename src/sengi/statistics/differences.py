"""Paired comparisons of two evaluations of the same questions: differences, tests, corrections, power.

==========================  ================================  ================================================
results of a question       interval of the difference        p, two-sided
==========================  ================================  ================================================
0 or 1                      Tango's score interval            McNemar's exact test
other numbers               bootstrap of the differences      signs of the differences flipped at random
numbers with weights        jackknife of the ratio of sums    the same, with weights
==========================  ================================  ================================================

Simulated coverage of the 95% intervals is 93% to 97% (tests/statistics/test_coverage.py) from n = 50 on, for 0/1
results where about five questions or more change. With fewer changes the score interval is too wide rather than too
narrow (98% to 99%); Newcombe's interval is wider still there, and a bootstrap has no width at all when every
question changes the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sengi.statistics.intervals import (
    DRAW_BUDGET,
    Interval,
    bootstrap_interval,
    finite_vector,
    normal_quantile,
    positive_weights,
    ratio_interval,
)

# Up to so many changed questions all 2^m patterns of signs are counted; above, so many are drawn.
EXACT_FLIPS = 20
DRAWN_FLIPS = 9_999


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """What changed between two evaluations of the same questions, in the order they were given.

    Attributes:
        difference: mean of ``after - before`` with its interval; ``n`` is the number of pairs.
        method: where the interval comes from: ``"score"`` (0/1 results), ``"bootstrap"`` or ``"ratio"`` (weights).
        p_value: two-sided; McNemar's exact test for 0/1 results, else the sign-flip test.
        gained: pairs whose value rose (0/1: wrong before, right after).
        lost: pairs whose value fell.
    """

    difference: Interval
    method: Literal["score", "bootstrap", "ratio"]
    p_value: float
    gained: int
    lost: int


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    confidence: float = 0.95,
    *,
    weights: ArrayLike | None = None,
    resamples: int = 2_000,
    seed: int = 0,
) -> PairedDifference:
    """Compare two evaluations question by question.

    Args:
        before: results of the questions, shape (n,).
        after: results of the same questions in the same order, shape (n,).
        confidence: between 0 and 1.
        weights: what each question weighs in the score, shape (n,); for example the tokens of a mean loss.
        resamples: for the bootstrap.
        seed: for the bootstrap and the flipped signs.

    Raises:
        ValueError: lengths differ, no pair, a value that is not finite, confidence out of range.
    """
    first, second = finite_vector(before, "before"), finite_vector(after, "after")
    if first.size != second.size:
        raise ValueError(f"before has {first.size} results, after {second.size}: pairs need the same questions")
    change = second - first
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    if weights is not None:
        weight = positive_weights(weights, change)
        interval = ratio_interval(change, weight, confidence)
        if np.ptp(change) == 0 and is_binary(first) and is_binary(second):  # the same of few questions proves nothing
            alike = max(1, int(weight.sum() ** 2 / (weight**2).sum()))  # questions of equal weight that tell as much
            ends = score_interval(alike, alike if gained else 0, alike if lost else 0, confidence)
            interval = Interval(float(change[0]), ends.low, ends.high, int(change.size))
        return PairedDifference(interval, "ratio", sign_flip_p(change * weight, seed=seed), gained, lost)
    if is_binary(first) and is_binary(second):
        interval = score_interval(int(change.size), gained, lost, confidence)
        return PairedDifference(interval, "score", mcnemar_p(gained, lost), gained, lost)
    interval = bootstrap_interval(change, confidence, resamples=resamples, seed=seed)
    return PairedDifference(interval, "bootstrap", sign_flip_p(change, seed=seed), gained, lost)


def is_binary(values: NDArray[np.float64]) -> bool:
    """Whether all values are 0 or 1."""
    return bool(np.isin(values, (0, 1)).all())


def score_interval(n: int, gained: int, lost: int, confidence: float = 0.95) -> Interval:
    """Tango's score interval of the difference of two paired shares (1998, Statistics in Medicine 17:891).

    It holds every difference that the score test does not reject, as Wilson's interval does for one share.

    Args:
        n: questions, at least 1.
        gained: questions that turned right.
        lost: questions that turned wrong.
        confidence: between 0 and 1.

    Raises:
        ValueError: counts or confidence out of range.
    """
    if n < 1 or gained < 0 or lost < 0 or gained + lost > n:
        raise ValueError(f"gained={gained}, lost={lost} of n={n}: need n >= 1 and gained + lost <= n")
    z = normal_quantile(confidence)
    value = (gained - lost) / n
    high = _bisect(lambda d: _tango_score(n, gained, lost, d) >= -z, value, 1.0)
    low = -_bisect(lambda d: _tango_score(n, lost, gained, d) >= -z, -value, 1.0)
    return Interval(value, low, high, n)


def _tango_score(n: int, gained: int, lost: int, difference: float) -> float:
    """The score statistic of ``difference``, standard normal where it is the true one."""
    b = (2 * n - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    share_lost = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # the likeliest, given the difference
    variance = n * (2 * share_lost + difference * (1 - difference))
    excess = gained - lost - n * difference
    if variance <= 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / math.sqrt(variance)


def _bisect(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """The last point, from ``inside`` towards ``outside``, at which ``holds`` is true; found to the last bits."""
    if holds(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


def mcnemar_p(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p: how likely a split this uneven is if gains and losses are equally likely.

    Args:
        gained: questions that turned right.
        lost: questions that turned wrong.

    Returns:
        p between 0 and 1; 1 when nothing changed.
    """
    if gained + lost == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(min(gained, lost), gained + lost, 0.5).pvalue)


def sign_flip_p(changes: ArrayLike, *, seed: int = 0) -> float:
    """Paired permutation test: how often a sum this far from 0 comes up if each change could as well be reversed.

    Exact up to 20 changes that are not zero; above, 9,999 patterns of signs are drawn and the observed one is added,
    so that p is never below 1 / 10,000.

    Args:
        changes: after minus before, times its weight where there are weights, shape (n,).
        seed: of the drawn signs.

    Raises:
        ValueError: no change, or one that is not finite.
    """
    change = finite_vector(changes, "changes")
    change = change[change != 0]
    if not change.size:
        return 1.0
    observed = abs(float(change.sum()))
    # Sums of the same numbers in another order differ in the last bits: they are ties.
    tie = observed - 1e-10 * float(np.abs(change).sum())
    if change.size <= EXACT_FLIPS:
        sums = np.zeros(1)
        for one in change:
            sums = np.concatenate((sums + one, sums - one))
        return float((np.abs(sums) >= tie).mean())
    rng = np.random.default_rng(seed)
    batch = max(1, DRAW_BUDGET // change.size)
    as_far = 1
    for start in range(0, DRAWN_FLIPS, batch):
        kept = rng.integers(0, 2, (min(batch, DRAWN_FLIPS - start), change.size), dtype=np.int8)
        sums = 2 * (kept.astype(np.float64) @ change) - change.sum()
        as_far += int((np.abs(sums) >= tie).sum())
    return as_far / (DRAWN_FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: rejecting where the result is at most 0.05 keeps the chance of any false
    rejection among all of them below 5%, however they depend on each other.

    Args:
        p_values: one a test, each 0 to 1.

    Returns:
        Adjusted p values in the given order.

    Raises:
        ValueError: a p value out of range.
    """
    for index, p in enumerate(p_values):
        if not 0 <= p <= 1:
            raise ValueError(f"p_values[{index}]={p}: need a number from 0 to 1")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
