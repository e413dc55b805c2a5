"""Intervals for scores and paired comparisons of two evaluations: pure functions, no files, no models.

Three questions and the answer each one gets:

=====================================  ==================================================
how sure is a share of right answers?  Wilson's score interval
how sure is a mean of real numbers?    bootstrap: BCa, percentile above 2,000 values
did the same questions change?         paired difference: Newcombe's interval and
                                       McNemar's exact p for 0/1, bootstrap for the rest
=====================================  ==================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

# BCa's acceleration needs n leave-one-out means (n^2 work); its correction shrinks as 1/sqrt(n).
BCA_LIMIT = 2_000
# Values drawn at once by the bootstrap: bounds its memory to about 80 MB.
DRAW_BUDGET = 10_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A score and how far to trust it.

    Attributes:
        value: the estimate.
        low: lower end of the interval, in the unit of ``value``; NaN where one value cannot tell.
        high: upper end, same unit.
        n: how many questions, tokens or values it rests on.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """What changed between two evaluations of the same questions, in the order they were given.

    Attributes:
        difference: mean of ``after - before`` with its interval; ``n`` is the number of pairs.
        method: ``"newcombe"`` (0/1 results) or ``"bootstrap"``: where the interval comes from.
        p_value: McNemar's exact two-sided p for 0/1 results, None for other values.
        gained: pairs whose value rose (0/1: wrong before, right after).
        lost: pairs whose value fell.
    """

    difference: Interval
    method: Literal["newcombe", "bootstrap"]
    p_value: float | None
    gained: int
    lost: int


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share; honest at 0 and at n, where the normal one has no width.

    Args:
        successes: how many of the n were right, 0 to n.
        n: number of questions, at least 1.
        confidence: share of such intervals that hold the true value, between 0 and 1.

    Raises:
        ValueError: counts or confidence out of range.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes} of n={n}: need n >= 1 and 0 <= successes <= n")
    z = _normal_quantile(confidence)
    share = successes / n
    scale = 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly; rounding must not put it one ulp beside.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return Interval(share, low, high, n)


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, *, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """Bootstrap interval of the mean: BCa up to 2,000 values, percentile above.

    Args:
        values: finite numbers, shape (n,), n >= 1.
        confidence: between 0 and 1.
        resamples: number of resampled means.
        seed: same values and seed, same interval.

    Returns:
        The mean with its interval. Equal values give an interval without width; a single value cannot tell its
        spread, so its ends are NaN.

    Raises:
        ValueError: no value, a value that is not finite, or confidence out of range.
    """
    sample = _finite_vector(values, "values")
    _normal_quantile(confidence)
    mean, n = float(sample.mean()), int(sample.size)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    if np.ptp(sample) == 0:
        return Interval(mean, mean, mean, n)
    from scipy.stats import bootstrap

    # Centred and scaled, so that squares of tiny spreads do not vanish; the mean follows both.
    scale = float(np.abs(sample - mean).max())
    result = bootstrap(
        ((sample - mean) / scale,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, DRAW_BUDGET // n),
        method="BCa" if n <= BCA_LIMIT else "percentile",
        rng=np.random.default_rng(seed),
        vectorized=True,
    ).confidence_interval
    return Interval(mean, mean + scale * float(result.low), mean + scale * float(result.high), n)


def paired_difference(
    before: ArrayLike, after: ArrayLike, confidence: float = 0.95, *, resamples: int = 2_000, seed: int = 0
) -> PairedDifference:
    """Compare two evaluations question by question.

    0/1 results get Newcombe's score interval for paired shares (his method 10), since a bootstrap of a run that
    goes from all wrong to all right has no width at all; other values get a bootstrap of the differences.

    Args:
        before: results of the questions, shape (n,).
        after: results of the same questions in the same order, shape (n,).
        confidence: between 0 and 1.
        resamples: for the bootstrap.
        seed: for the bootstrap.

    Raises:
        ValueError: lengths differ, no pair, a value that is not finite, confidence out of range.
    """
    first, second = _finite_vector(before, "before"), _finite_vector(after, "after")
    if first.size != second.size:
        raise ValueError(f"before has {first.size} results, after {second.size}: pairs need the same questions")
    change = second - first
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        interval = _newcombe_interval(first.astype(bool), second.astype(bool), confidence)
        return PairedDifference(interval, "newcombe", mcnemar_p(gained, lost), gained, lost)
    interval = bootstrap_interval(change, confidence, resamples=resamples, seed=seed)
    return PairedDifference(interval, "bootstrap", None, gained, lost)


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


def _newcombe_interval(before: NDArray[np.bool_], after: NDArray[np.bool_], confidence: float) -> Interval:
    """Interval of a difference of paired shares (Newcombe 1998, Statistics in Medicine 17:2635, method 10)."""
    n = int(before.size)
    both, gained = int((after & before).sum()), int((after & ~before).sum())
    lost, neither = int((before & ~after).sum()), int((~before & ~after).sum())
    new = wilson_interval(both + gained, n, confidence)
    old = wilson_interval(both + lost, n, confidence)
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    association = float(both * neither - gained * lost)
    if association > 0:
        association = max(association - n / 2, 0.0)
    phi = association / math.sqrt(product) if product else 0.0
    below = _combine(new.value - new.low, old.high - old.value, phi)
    above = _combine(new.high - new.value, old.value - old.low, phi)
    value = (gained - lost) / n
    return Interval(value, max(-1.0, value - below), min(1.0, value + above), n)


def _combine(one: float, other: float, phi: float) -> float:
    """Length of the difference of two margins whose correlation is phi."""
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _normal_quantile(confidence: float) -> float:
    """The z that holds ``confidence`` of a normal distribution between -z and z."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: need a number between 0 and 1, for example 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _finite_vector(values: ArrayLike | Sequence[float], name: str) -> NDArray[np.float64]:
    """``values`` as float64, shape (n,), n >= 1, all finite."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name}: need a list of at least one number, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(vector)))}] is not finite")
    return vector
