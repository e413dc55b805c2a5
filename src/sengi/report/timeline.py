"""Scores over the training: each whole task as a curve on the axes of the training curves, and its best checkpoint.

Evaluations lie in files of their own (see sengi/evaluate/run_evaluations.py); they meet the step records here, on the
step and the samples that both name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sengi.evaluate.selection import samples_to_peak
from sengi.report import formats
from sengi.report.curves import positions
from sengi.report.run_folder import RunFolder, Score
from sengi.report.scores import group_of_task
from sengi.report.tables import Row, Table

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoreCurve:
    """One score of whole tasks over a run, at two steps or more.

    Attributes:
        task, metric: which score.
        axes: positions on each x axis (``step``, ``samples``, ``tokens``, ``time``), shape (k,).
        values: shape (k,); ``low`` and ``high`` are the ends of the 95% intervals, NaN where there are none.
        higher_is_better: the score's direction.
    """

    task: str
    metric: str
    axes: dict[str, Numbers]
    values: Numbers
    low: Numbers
    high: Numbers
    higher_is_better: bool

    @property
    def name(self) -> str:
        """The task, with the metric where it is not plain accuracy."""
        return self.task if self.metric in ("acc", "accuracy") else f"{self.task}, {formats.metric(self.metric)}"


def score_curves(run: RunFolder) -> list[ScoreCurve]:
    """Every score of whole tasks that was taken at two steps or more, but for losses: those are drawn with the loss.

    Tasks of a group are left to the group. Of several suites that hold a task, the one counts that scored the most
    steps, then the one with the most questions.
    """
    parents = group_of_task(run)
    found: dict[tuple[str, str], list[tuple[int, float, Score]]] = {}
    for evaluation in run.evaluations:
        for score in evaluation.scores:
            if score.group == "all" and score.task not in parents and math.isfinite(score.value):
                found.setdefault((score.task, score.metric), []).append(
                    (evaluation.step, evaluation.samples_seen, score)
                )
    curves = []
    for (task, metric), taken in found.items():
        suites = [[one for one in taken if one[2].data == data] for data in {one[2].data for one in taken}]
        same = max(suites, key=lambda suite: (len(suite), suite[-1][2].n, suite[-1][2].data))
        if metric not in ("loss", "accuracy_sum") and len({step for step, _, _ in same}) > 1:
            curves.append(_curve(run, task, metric, same))
    return curves


def _curve(run: RunFolder, task: str, metric: str, taken: list[tuple[int, float, Score]]) -> ScoreCurve:
    steps = np.array([step for step, _, _ in taken], dtype=np.float64)
    axes = positions(run, steps)
    said = np.array([seen for _, seen, _ in taken])
    axes["samples"] = np.where(np.isfinite(said), said, axes["samples"])
    columns = (np.array([getattr(score, end) for _, _, score in taken]) for end in ("value", "low", "high"))
    values, low, high = columns
    return ScoreCurve(task, metric, axes, values, low, high, taken[0][2].higher_is_better)


def timeline_table(run: RunFolder) -> Table:
    """Base, best and last value of each score, and the samples to its peak, as the paper's tables have them."""
    rows = tuple(_row(curve) for curve in score_curves(run) if (curve.axes["step"] > 0).any())
    head = ("score", "checkpoints", "base", "best", "at step", "samples to peak", "last")
    note = (
        "The best of several checkpoints looks better than it is: these are not corrected. sengi eval RUN chooses on "
        "one half of the questions and reports on the other."
    )
    return Table("Scores over the training", head, rows, (1, 2, 3, 4, 5, 6), note)


def _row(curve: ScoreCurve) -> Row:
    trained = np.flatnonzero(curve.axes["step"] > 0)
    base = curve.values[curve.axes["step"] == 0]
    seen = [int(samples) for samples in curve.axes["samples"][trained]]
    higher = curve.higher_is_better
    best = trained[samples_to_peak(seen, curve.values[trained].tolist(), higher_is_better=higher).checkpoint]
    return Row(
        (
            f"{curve.task}: {formats.metric(curve.metric)}",
            formats.count(trained.size),
            formats.score(base[0], curve.metric) if base.size else formats.NOTHING,
            formats.score(curve.values[best], curve.metric),
            formats.count(curve.axes["step"][best]),
            formats.count(curve.axes["samples"][best]),
            formats.score(curve.values[-1], curve.metric),
        )
    )
