"""95% intervals of lm-eval's scores: of one task's metric, and of groups whose tasks are strata."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sengi.statistics.intervals import FEWEST_DRAWN, Interval, bootstrap_interval, t_quantile, wilson_interval

Z = NormalDist().inv_cdf(0.975)
RESAMPLES = 1_000
SLOW_RESAMPLES = 100  # as lm-eval does for the corpus metrics below
SLOW_METRICS = frozenset({"bleu", "chrf", "chrf++", "ter"})
UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True)
class Stratum:
    """One task of a group: its score and how far a new set of questions would move it.

    Attributes:
        value: the metric.
        variance: of ``value``.
        n: questions.
        is_share: the values of the questions are 0 and 1.
    """

    value: float
    variance: float
    n: int
    is_share: bool


def numbers(values: Sequence[Any]) -> NDArray[np.float64] | None:
    """Return the values of questions as numbers, None where a value is something else (lists, pairs, text)."""
    if not values or not all(isinstance(value, bool | int | float | np.number | np.bool_) for value in values):
        return None
    vector = np.asarray(values, dtype=np.float64)
    return vector if np.isfinite(vector).all() else None


def is_share(vector: NDArray[np.float64]) -> bool:
    """Return whether all values are 0 or 1."""
    return bool(np.isin(vector, (0.0, 1.0)).all())


def metric_interval(
    metric: str, values: Sequence[Any], aggregate: Callable[[Sequence[Any]], Any], value: float
) -> Interval:
    """Return a metric of one task with its interval.

    Shares of right answers get Wilson's interval, means of other numbers a bootstrap of the mean, everything else
    (corpus metrics, answers with parts) a bootstrap over questions through lm-eval's own aggregation. A bootstrap of
    fewer than 5 questions would be far too narrow: its ends are NaN.

    Args:
        metric: its name.
        values: what the metric gave for each question.
        aggregate: makes the score of them.
        value: the score.
    """
    vector = numbers(values)
    if vector is not None and math.isclose(float(vector.mean()), value, rel_tol=1e-9, abs_tol=1e-12):
        if is_share(vector):
            share = wilson_interval(int(vector.sum()), vector.size)
            return Interval(value, share.low, share.high, share.n)
        mean = bootstrap_interval(vector)
        return Interval(value, mean.low, mean.high, mean.n)
    draws = aggregate_draws(metric, values, aggregate) if len(values) >= FEWEST_DRAWN else None
    low, high = UNKNOWN if draws is None else np.quantile(draws, (0.025, 0.975))
    return Interval(value, float(low), float(high), len(values))


def aggregate_draws(
    metric: str, values: Sequence[Any], aggregate: Callable[[Sequence[Any]], Any]
) -> NDArray[np.float64] | None:
    """Return scores of resampled questions, None where the aggregation gives no number for one."""
    if len(values) < 2:
        return None
    rng = np.random.default_rng(0)
    count = SLOW_RESAMPLES if metric in SLOW_METRICS else RESAMPLES
    draws = np.empty(count)
    for index in range(count):
        score = aggregate([values[i] for i in rng.integers(0, len(values), len(values))])
        if not isinstance(score, bool | int | float | np.number) or not math.isfinite(score):
            return None
        draws[index] = score
    return draws


def stratum(metric: str, values: Sequence[Any], aggregate: Callable[[Sequence[Any]], Any], value: float) -> Stratum:
    """Return what a task adds to the interval of its group; arguments as in :func:`metric_interval`."""
    vector = numbers(values)
    if vector is not None and math.isclose(float(vector.mean()), value, rel_tol=1e-9, abs_tol=1e-12):
        n = vector.size
        if is_share(vector):
            # One more right and one more wrong: a task whose few questions are all right is not certain.
            smooth = (value * n + 1) / (n + 2)
            return Stratum(value, smooth * (1 - smooth) / n, n, True)
        return Stratum(value, float(vector.var(ddof=1)) / n if n > 1 else math.nan, n, False)
    draws = aggregate_draws(metric, values, aggregate)
    return Stratum(value, math.nan if draws is None else float(draws.var(ddof=1)), len(values), False)


def group_interval(strata: Sequence[Stratum], weights: Sequence[float], value: float) -> Interval:
    """Return a weighted mean of tasks with its interval: the tasks stay, their questions are a sample.

    Args:
        strata: the tasks.
        weights: of each task in the mean, sum 1.
        value: the score as lm-eval has it.
    """
    n = sum(one.n for one in strata)
    variance = math.fsum(weight**2 * one.variance for weight, one in zip(weights, strata, strict=True))
    if not math.isfinite(variance):
        return Interval(value, *UNKNOWN, n)
    if not all(one.is_share for one in strata):
        half = _t_quantile(strata, weights, variance) * math.sqrt(variance)
        return Interval(value, value - half, value + half, n)
    plain = value * (1 - value)
    # The questions of a simple random sample that would be as certain as this stratified one.
    pooled = math.fsum(weight**2 / one.n for weight, one in zip(weights, strata, strict=True))
    equal = plain / variance if plain > 0 else 1 / pooled
    return Interval(value, *_wilson(value, equal), n)


def _wilson(share: float, n: float) -> tuple[float, float]:
    scale = 1 + Z * Z / n
    center = (share + Z * Z / (2 * n)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def _t_quantile(strata: Sequence[Stratum], weights: Sequence[float], variance: float) -> float:
    """Student's quantile with the degrees of freedom of Welch and Satterthwaite."""
    parts = [
        (weight**2 * one.variance) ** 2 / (one.n - 1) for weight, one in zip(weights, strata, strict=True) if one.n > 1
    ]
    total = math.fsum(parts)
    return float(t_quantile(0.975, variance**2 / total)) if total > 0 else Z
