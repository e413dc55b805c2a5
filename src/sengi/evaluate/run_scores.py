"""One score over a run: its curve, the best checkpoint said honestly, and the samples it took to get there.

The best of many checkpoints looks better than it is. Where the score is a mean over single questions, the best is
chosen on one half of them and reported on the other (:mod:`sengi.evaluate.selection`); where it is not, or the
questions are too few, the naive best stands alone and ``uncorrected`` says why. The base model is no candidate: it is
what the others are held against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sengi.evaluate.run_evaluations import Point
from sengi.evaluate.saved_samples import leaves_of
from sengi.evaluate.selection import FEWEST, samples_to_peak, select_checkpoint
from sengi.statistics.intervals import Interval

Items = Mapping[int, Mapping[str, Sequence[dict[str, Any]]]]  # step -> task -> items


@dataclass(frozen=True)
class Best:
    """A checkpoint that was chosen, and its score.

    Attributes:
        step, samples_seen: of the checkpoint.
        score: with its 95% interval.
    """

    step: int
    samples_seen: int
    score: Interval


@dataclass(frozen=True)
class ScoreLine:
    """One score of all checkpoints of a run.

    Attributes:
        task, metric, group: which score.
        higher_is_better: its direction.
        base: the base model's, None where it was not scored.
        points: one a checkpoint, by rising step; none where only the base was scored.
        naive: the best of all questions, not corrected; None without a checkpoint. Its ``samples_seen`` are the
            paper's "samples to peak".
        best: chosen on one half of the questions, scored on the other; None where ``uncorrected`` says why.
        swapped: the same with the halves swapped; another step than ``best`` means that the questions cannot tell.
        within_noise: the first checkpoint that is not shown to be worse than the naive best; None as ``best``.
        uncorrected: why there is no corrected choice; empty where there is one.
    """

    task: str
    metric: str
    group: str
    higher_is_better: bool
    base: Point | None
    points: list[Point]
    naive: Best | None = None
    best: Best | None = None
    swapped: Best | None = None
    within_noise: Best | None = None
    uncorrected: str = ""

    @property
    def name(self) -> str:
        """``task/metric``, with the group where it is a part of the questions."""
        return f"{self.task}/{self.metric}" + ("" if self.group == "all" else f"/{self.group}")


def score_line(
    task: str, metric: str, group: str, points: Sequence[Point], items: Items, parts: Mapping[str, Sequence[str]]
) -> ScoreLine:
    """Sum one score up over a run.

    Args:
        task: its name.
        metric: of the score.
        group: ``all`` or a part of the questions, ``column=value``.
        points: of the base (step 0) and the checkpoints, one at least, by rising step; values that are no numbers are
            left out.
        items: single questions by step and task, as evaluations keep them.
        parts: of each group of tasks what is in it, as evaluations keep it (``group_subtasks``).
    """
    known = [point for point in points if math.isfinite(point.value)]
    base = next((point for point in known if point.step == 0), None)
    after = [point for point in known if point.step > 0]
    higher = points[0].higher_is_better
    line = ScoreLine(task, metric, group, higher, base, after)
    if not after:
        return replace(line, uncorrected="no checkpoint is scored")
    seen, values = [point.samples_seen for point in after], [point.value for point in after]
    found = _table(leaves_of(task, parts), metric, group, after, items)
    if isinstance(found, str):
        peak = samples_to_peak(seen, values, higher_is_better=higher)
        return replace(line, naive=_as_best(after[peak.checkpoint]), uncorrected=found)
    results, weights = found
    choice = select_checkpoint(results, weights=weights, higher_is_better=higher)
    peak = samples_to_peak(seen, values, results=results, weights=weights, higher_is_better=higher)

    def chosen(checkpoint: int, score: Interval) -> Best:
        return Best(after[checkpoint].step, after[checkpoint].samples_seen, score)

    return replace(
        line,
        naive=_as_best(after[peak.checkpoint]),
        best=chosen(choice.best.checkpoint, choice.best.score),
        swapped=chosen(choice.swapped.checkpoint, choice.swapped.score),
        within_noise=None if peak.within_noise is None else _as_best(after[peak.within_noise]),
    )


def by_task(items: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Items of one evaluation, by task."""
    found: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        found.setdefault(str(item.get("task")), []).append(item)
    return found


def _as_best(point: Point) -> Best:
    return Best(point.step, point.samples_seen, Interval(point.value, point.low, point.high, point.n))


def _table(
    tasks: Sequence[str], metric: str, group: str, points: Sequence[Point], items: Items
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None] | str:
    """Results of each checkpoint on each question they all answered, with weights; or why there are none."""
    rows = [_results(tasks, metric, group, point, items.get(point.step, {})) for point in points]
    if not all(rows):
        return "the score is no mean over single questions"
    common = [key for key in rows[0] if all(key in row for row in rows)]
    if len(common) < FEWEST:
        return f"{len(common)} questions are too few to choose on one half and report on the other"
    weights = np.array([rows[0][key][1] for key in common])
    table = np.array([[row[key][0] for key in common] for row in rows])
    return table, None if (weights == 1).all() else weights


def _results(
    tasks: Sequence[str], metric: str, group: str, point: Point, items: Mapping[str, Sequence[dict[str, Any]]]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Value and weight by question, where they make up the score; else nothing.

    A group of tasks (``mmlu``) has no questions of its own. Those of its tasks are taken where their mean is the
    group's score, which holds for groups that weigh their tasks by size.
    """
    column, _, value = group.partition("=")
    by_sum = metric == "accuracy_sum"
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for item in [item for task in tasks for item in items.get(task, ())]:
        result = item.get("correct_sum" if by_sum else "correct")
        of_metric = item.get("metric") == ("accuracy" if by_sum else metric)
        of_group = group == "all" or str(item.get(column)) == value
        if of_metric and of_group and isinstance(result, int | float) and math.isfinite(result):
            found[str(item.get("task")), str(item.get("id"))] = float(result), float(item.get("weight") or 1)
    total = sum(weight for _, weight in found.values())
    mean = sum(result * weight for result, weight in found.values()) / total if total else math.nan
    return found if len(found) == point.n and abs(mean - point.value) <= 1e-6 * max(1, abs(point.value)) else {}
