"""Which setting of a study is best: settings averaged over seeds, and single runs, each against the best one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sengi.evaluate.selection import FEWEST, Selection, samples_to_peak, select_checkpoint
from sengi.statistics.differences import PairedDifference, holm, paired_difference
from sengi.statistics.intervals import Interval
from sengi.study.contrasts import Contrast, SeedSpread, Trained, average, contrast, seed_spread
from sengi.study.results import RunResult, StudyResults

LEVEL = 0.05
Word = Literal["best", "worse", "not told apart"]


@dataclass(frozen=True)
class Peak:
    """Where a run was at its best: samples seen, the score there, and seconds in steps until then."""

    samples: int
    score: float
    seconds: float


@dataclass(frozen=True)
class RankedSetting:
    """One point of the space, over its seeds.

    Attributes:
        point, settings: which.
        runs: with a score; ``others`` without one.
        score: mean over seeds with its interval, in the unit of the objective; ``n`` is the number of runs.
        against_best: how much better it is than the best one, above 0 only where it lost a run; None for the best.
        p_holm: of that, corrected for all settings; NaN where nothing tells.
        word: ``worse`` where a difference to the best was shown.
    """

    point: int
    settings: dict[str, Any]
    runs: tuple[RunResult, ...]
    others: tuple[RunResult, ...]
    score: Interval
    against_best: Contrast | None
    p_holm: float = math.nan
    word: Word = "not told apart"

    @property
    def lost(self) -> tuple[RunResult, ...]:
        """Its runs that failed or that an alarm stopped: those that survived are no fair sample of the setting."""
        return tuple(run for run in self.others if run.lost)


@dataclass(frozen=True)
class RankedRun:
    """One run with a score, against the best run on the same questions.

    Attributes:
        run: the run; ``peak`` where it was best.
        paired: the best run's score minus this one's, in the unit of the objective; None for the best run, and where
            single results are missing.
        p_holm: its p, corrected for all runs.
    """

    run: RunResult
    peak: Peak
    paired: PairedDifference | None
    p_holm: float = math.nan


def trained(results: StudyResults, run: RunResult, block: str = "") -> Trained:
    """A scored run for a contrast, turned so that higher is better."""
    sign = -1 if results.minimize else 1
    items = {id_: (sign * value, weight) for id_, (value, weight) in run.items.items()}
    return Trained(run.name, block, run.seed, results.quality(run), items)


def spread_of(results: StudyResults) -> SeedSpread | None:
    """The spread between seeds over all points of a study that ended better than they began.

    Runs that diverged differ by far more from seed to seed than those that learn, and would hide every difference.
    """
    points: dict[int, list[float]] = {}
    for run in results.scored:
        base = run.evaluations[0]
        began = -base.value if results.minimize else base.value
        if len(run.evaluations) < 2 or base.samples_seen > 0 or results.quality(run) > began:
            points.setdefault(run.point, []).append(results.quality(run))
    return seed_spread(points)


def rank_settings(results: StudyResults) -> list[RankedSetting]:
    """All points with a score, best first, each compared with the best one; those that lost a run come last."""
    spread = spread_of(results)
    points: dict[int, list[RunResult]] = {}
    for run in results.runs:
        points.setdefault(run.point, []).append(run)
    scored = {point: [run for run in runs if run.score] for point, runs in points.items()}
    told = {point: [trained(results, run) for run in runs] for point, runs in scored.items() if runs}
    lost = {point for point, runs in points.items() if any(run.lost for run in runs)}
    order = sorted(told, key=lambda at: (at in lost, -float(np.mean([run.quality for run in told[at]])), at))
    ranked = []
    for point in order:
        others = tuple(run for run in points[point] if not run.score)
        level = _level(results, scored[point], spread)
        against = None if point == order[0] else contrast(told[order[0]], told[point], spread)
        settings = points[point][0].settings
        ranked.append(RankedSetting(point, settings, tuple(scored[point]), others, level, against))
    return _corrected(ranked)


def _level(results: StudyResults, runs: Sequence[RunResult], spread: SeedSpread | None) -> Interval:
    """Mean score of a point with its interval, in the unit of the objective; a share stays one."""
    alone = runs[0].score
    assert alone is not None
    if len(runs) == 1 and spread is None and math.isfinite(alone.low + alone.high):
        return Interval(alone.value, alone.low, alone.high, 1)  # made for its metric, when it was scored
    mean = average([trained(results, run) for run in runs], spread)
    value, low, high = mean.value, mean.low, mean.high
    if results.minimize:
        value, low, high = -value, -high, -low
    single = {result for run in runs for result, _ in run.items.values()}
    if single and single <= {0.0, 1.0}:
        low, high = (min(max(end, 0.0), 1.0) if math.isfinite(end) else end for end in (low, high))
    return Interval(value, low, high, mean.n)


def _corrected(ranked: Sequence[RankedSetting]) -> list[RankedSetting]:
    """Holm's p over all comparisons with the best that have one."""
    sure = [one.point for one in ranked if one.against_best is not None and one.against_best.sure]
    p_values = [one.against_best.p_value for one in ranked if one.against_best is not None and one.against_best.sure]
    corrected = dict(zip(sure, holm(p_values), strict=True))
    return [
        replace(one, word="best")
        if one.against_best is None
        else replace(
            one,
            p_holm=corrected.get(one.point, math.nan),
            word="worse" if one.against_best.value < 0 and corrected.get(one.point, 1.0) < LEVEL else "not told apart",
        )
        for one in ranked
    ]


def rank_runs(results: StudyResults) -> list[RankedRun]:
    """All runs with a score, best first, each compared with the best one, question by question."""
    runs = sorted(results.scored, key=lambda run: (-results.quality(run), run.name))
    rows = [RankedRun(run, peak_of(run, results.minimize), _paired(run, runs[0])) for run in runs]
    corrected = holm([row.paired.p_value for row in rows if row.paired is not None])
    p_values = iter(corrected)
    return [row if row.paired is None else replace(row, p_holm=next(p_values)) for row in rows]


def _paired(run: RunResult, best: RunResult) -> PairedDifference | None:
    ids = sorted(set(run.items) & set(best.items))
    if run is best or not ids:
        return None
    own, other = (np.array([one.items[id_][0] for id_ in ids]) for one in (run, best))
    weights = np.array([run.items[id_][1] for id_ in ids])
    return paired_difference(own, other, weights=weights if np.ptp(weights) > 0 else None)


def peak_of(run: RunResult, minimize: bool) -> Peak:
    """The best evaluation of a scored run, but for that of the untouched model."""
    points = [point for point in run.evaluations if point.samples_seen > 0]
    values = [point.value for point in points]
    peak = samples_to_peak([point.samples_seen for point in points], values, higher_is_better=not minimize)
    share = peak.samples / run.samples_seen if run.samples_seen else 1.0
    return Peak(peak.samples, values[peak.checkpoint], run.seconds * share)


def chosen_on_half(results: StudyResults, ranked: Sequence[RankedSetting]) -> Selection | None:
    """The best setting chosen on one half of the questions and scored on the other: free of the luck of being chosen.

    Returns:
        Positions are those of ``ranked``; scores are turned so that higher is better. None with fewer than two settings
        that lost no run or ten questions that all runs were asked.
    """
    ranked = [one for one in ranked if not one.lost]  # the first ones, so that positions stay
    runs = [run for one in ranked for run in one.runs]
    shared = set.intersection(*(set(run.items) for run in runs)) if runs else set()
    if len(ranked) < 2 or len(shared) < FEWEST:
        return None
    ids = sorted(shared)
    sign = -1 if results.minimize else 1
    table = [np.mean([[sign * run.items[id_][0] for id_ in ids] for run in one.runs], axis=0) for one in ranked]
    return select_checkpoint(np.array(table), weights=[runs[0].items[id_][1] for id_ in ids])
