"""How far two settings differ, and how sure that is: the one estimate behind the ranking and the claims of a study.

A difference is a mean over *blocks* (points that agree in all other settings) of differences between means over seeds.
Two kinds of chance stand beside each other, and their variances are added:

* of the questions: other questions would have given another score. The jackknife over single results, averaged over
  seeds and blocks, with Student's t (:func:`sengi.statistics.intervals.ratio_error`).
* of the training: another seed would have given another model. The spread between repeated seeds, pooled over all
  points of the study. Where no seed was repeated, the spread between blocks stands in, which also counts that a setting
  may matter more in one block than in another. With one seed and one block this part is unknown, and said to be.

Where results are right or wrong, the part of the questions is never less than that of as many questions of which none
changed (Tango's score interval): equal results of twenty questions are no certainty about all others.

Degrees of freedom of the sum by Welch and Satterthwaite. Part of the interaction of seeds and questions is counted
twice, so that intervals are rather too wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sengi.statistics.differences import paired_difference, score_interval
from sengi.statistics.intervals import Interval, ratio_error, t_quantile, t_two_sided
from sengi.statistics.power import minimal_detectable_difference

POWER = 0.8
Floats = NDArray[np.float64]
Estimate = tuple[float, float]  # variance, degrees of freedom


@dataclass(frozen=True)
class Trained:
    """One run as a contrast sees it.

    Attributes:
        name: of the run.
        block: text that runs share which differ only in what is compared, and in the seed.
        seed: of the run.
        quality: its final score, turned so that higher is better.
        items: single results behind it, by question: result (also turned) and weight; empty where there are none.
    """

    name: str
    block: str
    seed: int
    quality: float
    items: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class SeedSpread:
    """Standard deviation of a run's score between seeds, with its degrees of freedom; pooled over points."""

    sd: float
    freedom: int


@dataclass(frozen=True)
class Contrast:
    """How much better one setting is than another.

    Attributes:
        value: difference in quality: above zero, the second is better.
        low, high: its interval; NaN where nothing tells how sure it is.
        p_value: two-sided; NaN likewise.
        detectable: the smallest true difference that would be found 4 times in 5; NaN likewise.
        chance: what the interval counts: any of ``questions``, ``seeds`` and ``other settings``.
        blocks: difference in each block, by its text.
        runs: names of all runs it rests on.
    """

    value: float
    low: float
    high: float
    p_value: float
    detectable: float
    chance: tuple[str, ...]
    blocks: dict[str, float]
    runs: tuple[str, ...]

    @property
    def sure(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low)


def seed_spread(points: Mapping[int, Sequence[float]]) -> SeedSpread | None:
    """The pooled spread between seeds; None where no point has two.

    Args:
        points: scores of the runs of each point.
    """
    repeated = [np.asarray(scores, dtype=float) for scores in points.values() if len(scores) > 1]
    freedom = sum(len(scores) - 1 for scores in repeated)
    if not freedom:
        return None
    squares = sum(float(((scores - scores.mean()) ** 2).sum()) for scores in repeated)
    return SeedSpread(math.sqrt(squares / freedom), freedom)


def contrast(
    first: Sequence[Trained], second: Sequence[Trained], spread: SeedSpread | None, confidence: float = 0.95
) -> Contrast | None:
    """Compare two settings over the blocks that both have; None without one.

    In a block, seeds that both have are compared where there are any: they saw the same samples in the same order.

    Args:
        first, second: runs of the two, in any order.
        spread: of :func:`seed_spread`.
        confidence: of the interval.
    """
    pairs = _pair(first, second)
    if not pairs:
        return None
    means = [[float(np.mean([run.quality for run in side])) for side in pair] for pair in pairs.values()]
    differences = np.array([after - before for before, after in means])
    value = float(differences.mean())
    runs = tuple(sorted(run.name for pair in pairs.values() for side in pair for run in side))
    blocks = {block: float(d) for block, d in zip(pairs, differences, strict=True)}
    questions = _questions(list(pairs.values()), confidence)
    training, source = _training(list(pairs.values()), differences, spread)
    if questions is not None and training is None and len(runs) == 2:
        return _single_pair(next(iter(pairs.values())), value, blocks, runs, confidence)
    parts = [part for part in (questions, training) if part is not None]
    chance = (("questions",) if questions else ()) + ((source,) if training else ())
    error, freedom = _add_up(parts) if parts else (math.nan, math.nan)
    if error == 0 == value:
        return Contrast(value, value, value, 1.0, 0.0, chance, blocks, runs)
    if not error > 0:  # seeds that give the same score to the last digit say nothing of chance
        return Contrast(value, math.nan, math.nan, math.nan, math.nan, (), blocks, runs)
    reach = float(t_quantile((1 + confidence) / 2, freedom)) * error
    p = t_two_sided(value / error, freedom)
    detectable = reach + float(t_quantile(POWER, freedom)) * error
    return Contrast(value, value - reach, value + reach, p, detectable, chance, blocks, runs)


def average(runs: Sequence[Trained], spread: SeedSpread | None, confidence: float = 0.95) -> Interval:
    """Mean quality of the runs of one point, with the interval that counts the same kinds of chance.

    Args:
        runs: of the point, one a seed.
        spread: of :func:`seed_spread`.
        confidence: of the interval.

    Returns:
        ``n`` is the number of runs; the ends are NaN where nothing tells how sure it is.
    """
    value = float(np.mean([run.quality for run in runs]))
    parts: list[Estimate] = [] if spread is None else [(spread.sd**2 / len(runs), float(spread.freedom))]
    nothing = [
        Trained("", run.block, run.seed, 0.0, {id_: (0.0, w) for id_, (_, w) in run.items.items()}) for run in runs
    ]
    if (questions := _questions([(nothing, list(runs))], confidence)) is not None:
        parts.append(questions)
    error, freedom = _add_up(parts) if parts else (math.nan, math.nan)
    if not error > 0:
        return Interval(value, math.nan, math.nan, len(runs))
    reach = float(t_quantile((1 + confidence) / 2, freedom)) * error
    return Interval(value, value - reach, value + reach, len(runs))


def _add_up(parts: Sequence[Estimate]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a sum of independent parts (Welch 1947, Satterthwaite 1946)."""
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0, min(freedom for _, freedom in parts)
    return math.sqrt(variance), variance**2 / sum(part**2 / freedom for part, freedom in parts)


Pair = tuple[list[Trained], list[Trained]]


def _pair(first: Sequence[Trained], second: Sequence[Trained]) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    for block in sorted({run.block for run in first} & {run.block for run in second}):
        sides = [sorted((r for r in side if r.block == block), key=lambda r: r.name) for side in (first, second)]
        shared = {run.seed for run in sides[0]} & {run.seed for run in sides[1]}
        one, other = ([run for run in side if run.seed in shared or not shared] for side in sides)
        pairs[block] = one, other
    return pairs


def _training(pairs: Sequence[Pair], differences: Floats, spread: SeedSpread | None) -> tuple[Estimate | None, str]:
    """Variance of the mean difference by the chance of training."""
    count = len(pairs)
    if spread is not None:
        share = sum(1 / len(side) for pair in pairs for side in pair) / count**2
        return (spread.sd**2 * share, float(spread.freedom)), "seeds"
    if count > 1:
        return (float(differences.var(ddof=1)) / count, count - 1.0), "other settings"
    return None, ""


def _questions(pairs: Sequence[Pair], confidence: float) -> Estimate | None:
    """Variance of the mean difference by the choice of questions; None where single results are missing."""
    table = _changes(pairs)
    if table is None or len(table[0]) < 2:
        return None
    change, weights = table
    alike = float(weights.sum() ** 2 / (weights**2).sum())  # questions of equal weight that tell as much
    freedom = max(alike - 1, 1.0)
    error = float(ratio_error(change, weights))
    if _right_or_wrong(pairs):
        unchanged = score_interval(max(1, int(alike)), 0, 0, confidence).high
        error = max(error, unchanged / float(t_quantile((1 + confidence) / 2, freedom)))
    return error**2, freedom


def _right_or_wrong(pairs: Sequence[Pair]) -> bool:
    """Whether all single results are 0 or 1, or -1 where they were turned."""
    values = {abs(value) for pair in pairs for side in pair for run in side for value, _ in run.items.values()}
    return values <= {0.0, 1.0}


def _changes(pairs: Sequence[Pair]) -> tuple[Floats, Floats] | None:
    """Change of each question that all runs were asked, mean over blocks, and its weight: shapes (n,), (n,)."""
    runs = [run for pair in pairs for side in pair for run in side]
    shared = set(runs[0].items)
    for run in runs[1:]:
        shared &= set(run.items)
    ids = sorted(shared)
    if not ids:
        return None
    change = np.zeros(len(ids))
    for before, after in pairs:
        for side, sign in ((before, -1), (after, +1)):
            for run in side:
                change += sign * np.array([run.items[id_][0] for id_ in ids]) / len(side) / len(pairs)
    return change, np.array([runs[0].items[id_][1] for id_ in ids])


def _single_pair(
    pair: Pair, value: float, blocks: dict[str, float], runs: tuple[str, ...], confidence: float
) -> Contrast:
    """Two runs: the paired comparison of ``sengi compare``, which knows shares of right answers."""
    before, after = pair[0][0], pair[1][0]
    ids = sorted(set(before.items) & set(after.items))
    old, new = (np.array([run.items[id_][0] for id_ in ids]) for run in (before, after))
    weights = np.array([before.items[id_][1] for id_ in ids])
    weighted = weights if np.ptp(weights) > 0 else None
    binary = _right_or_wrong([pair])
    if binary and min(old.min(), new.min()) < 0:  # turned: the same differences of 0 and 1
        old, new = old + 1, new + 1
    found = paired_difference(old, new, confidence, weights=weighted)
    sd = float(ratio_error(new - old, weights)) * math.sqrt(len(ids))
    alpha = 1 - confidence
    if binary and weighted is None:
        share = (found.gained + found.lost) / len(ids)
        detectable = minimal_detectable_difference(len(ids), discordant=share, power=POWER, alpha=alpha)
    else:
        detectable = minimal_detectable_difference(len(ids), sd=sd, power=POWER, alpha=alpha)
    d = found.difference
    return Contrast(value, d.low, d.high, found.p_value, detectable, ("questions",), blocks, runs)
