"""The curves and early signals of a study as numbers to draw; Bokeh and matplotlib draw the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sengi.report.curves import SMOOTH_FROM, moving_median, thin
from sengi.report.study_maps import colour, ranks
from sengi.study.findings import comparable
from sengi.study.judge import CONDEMNED
from sengi.study.results import RunResult, StudyResults
from sengi.study.signals import signals_at
from sengi.study.space import settings_text

Numbers = NDArray[np.float64]
POINTS = 400  # drawn of one run: a study has many
UNSCORED = "#9a9a9a"
LOG_FROM = 10  # a field whose largest norm is so many times its median is drawn on a log axis
MARKED = {"suspect": "suspect", "spared": "spared", **dict.fromkeys(CONDEMNED, "condemned")}


@dataclass(frozen=True)
class RunCurve:
    """One run's curves.

    Attributes:
        name, settings: of the run.
        score: its final score, NaN without one.
        colour: by the rank of its score.
        samples, loss, grad_norm: drawn points, shape (m,); smoothed where the run has 80 steps or more.
    """

    name: str
    settings: str
    score: float
    colour: str
    samples: Numbers
    loss: Numbers
    grad_norm: Numbers


@dataclass(frozen=True)
class Mark:
    """A word of the judge on a curve: ``suspect``, ``condemned`` or ``spared``, where it fell, and its sentence."""

    run: str
    word: str
    samples: int
    loss: float
    grad_norm: float
    reason: str


@dataclass(frozen=True)
class EarlySignal:
    """One early signal against the final score, a point a run: names, values and scores, in the same order."""

    name: str
    runs: tuple[str, ...]
    colours: tuple[str, ...]
    values: Numbers
    scores: Numbers
    log: bool


def run_colours(results: StudyResults) -> dict[str, str]:
    """Colour of each run: blue for the best final scores, orange for the worst, grey without one."""
    ordered = sorted(results.scored, key=lambda run: (-results.quality(run), run.name))
    shades = {run.name: colour(rank) for run, rank in zip(ordered, ranks(len(ordered)), strict=True)}
    return {run.name: shades.get(run.name, UNSCORED) for run in results.runs}


def run_curves(results: StudyResults) -> list[RunCurve]:
    """Loss and gradient norm of every run that took a step, the best drawn last."""
    colours = run_colours(results)
    begun = [run for run in results.runs if run.history.samples_seen]
    order = sorted(begun, key=lambda run: (results.quality(run) if run.score else -math.inf, run.name))
    return [_curve(run, colours[run.name]) for run in order]


def _curve(run: RunResult, shade: str) -> RunCurve:
    seen = np.asarray(run.history.samples_seen, dtype=np.float64)
    columns = []
    at = thin(_finite(run.history.loss), POINTS)
    for values in (_finite(run.history.loss), _finite(run.history.grad_norm)):
        columns.append(moving_median(values, at) if values.size >= SMOOTH_FROM else values[at])
    score = run.score.value if run.score is not None else math.nan
    return RunCurve(run.name, settings_text(run.settings), score, shade, seen[at], columns[0], columns[1])


def _finite(values: Sequence[float]) -> Numbers:
    column = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(column), column, np.nan)


def norm_is_wide(curves: Sequence[RunCurve]) -> bool:
    """Whether gradient norms want a logarithmic axis."""
    values = np.concatenate([curve.grad_norm for curve in curves]) if curves else np.empty(0)
    values = values[np.isfinite(values) & (values > 0)]
    return bool(values.size and values.max() > LOG_FROM * np.median(values))


def marks(results: StudyResults, curves: Sequence[RunCurve]) -> list[Mark]:
    """Where the judge spoke against a run; of several checks with the same word the first."""
    drawn = {curve.name: curve for curve in curves}
    found: dict[tuple[str, str], Mark] = {}
    for run in results.runs:
        for line in run.verdicts:
            word = MARKED.get(str(line["state"]), "")
            if word and run.name in drawn and (run.name, word) not in found:
                at, curve = int(line["check"]), drawn[run.name]
                loss, norm = (float(np.interp(at, curve.samples, y)) for y in (curve.loss, curve.grad_norm))
                found[run.name, word] = Mark(run.name, word, at, loss, norm, str(line["reason"]))
    return list(found.values())


def early_signals(results: StudyResults) -> list[EarlySignal]:
    """Signals at the last check of the early window, of the finished runs whose rank correlation is told."""
    scored = results.scored
    if not scored:
        return []
    colours, check = run_colours(results), results.judge.checks()[-1] if len(results.judge.checks()) else 0
    scored = comparable(scored)
    warm = max(run.history.warmup_samples for run in scored)
    pairs = [(run, s) for run in scored if (s := signals_at(run.history, check, results.judge.window, warm))]
    found = []
    for name, log, values in (
        ("early loss", False, [s.loss for _, s in pairs]),
        ("early gradient norm", True, [s.grad_norm for _, s in pairs]),
        (
            "early gradient norm without noise",
            True,
            [math.sqrt(s.corrected) if s.corrected > 0 else math.nan for _, s in pairs],
        ),
    ):
        kept = [(run, value) for (run, _), value in zip(pairs, values, strict=True) if math.isfinite(value)]
        several = len({run.history.batch_size for run, _ in pairs}) > 1
        if kept and (several or not name.endswith("noise")):
            scores = np.array([run.score.value for run, _ in kept if run.score is not None])
            shades = tuple(colours[run.name] for run, _ in kept)
            names = tuple(f"{run.name}: {settings_text(run.settings)}" for run, _ in kept)
            found.append(EarlySignal(name, names, shades, np.array([value for _, value in kept]), scores, log))
    return found
