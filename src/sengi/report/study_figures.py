"""The pictures of a study's report as PNG, for Markdown: curves, ranking, grid, early signals."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sengi.errors import InputError
from sengi.report import formats
from sengi.report.charts import MUTED
from sengi.report.study_contents import StudyReport
from sengi.report.study_curves import EarlySignal, Mark, RunCurve, norm_is_wide
from sengi.report.study_maps import HeatMap, colour, ranks
from sengi.report.study_numbers import ScoreText, objective_text
from sengi.study.ranking import RankedSetting
from sengi.study.space import settings_text

DPI = 150
MOST_ROWS = 40
MARKERS = {"suspect": "o", "condemned": "x", "spared": "^"}
DARK_TEXT = 0.75  # share of a cell's colour that is mixed with white, so that black text stays readable


def draw_study_figures(report: StudyReport) -> dict[str, bytes]:
    """All pictures that the study has numbers for: PNG bytes by file name.

    Raises:
        InputError: matplotlib is not installed.
    """
    pictures = {}
    objective = objective_text(report.results.objective)
    if len(report.ranked) > 1:
        pictures["ranking.png"] = _ranking(report.ranked[:MOST_ROWS], report.numbers.metric, objective)
    if report.maps:
        pictures["grid.png"] = _grid(report.maps, report.numbers, objective)
    if report.curves:
        pictures["curves.png"] = _curves(report.curves, report.marks)
    if report.early:
        pictures["early_signals.png"] = _signals(report.early, objective)
    return pictures


def _figure(height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("sengi report needs matplotlib for its figures: pip install 'sengi[report]'") from None
    figure = Figure(figsize=(8, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Without the date and version in it, the same study gives the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _calm(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=MUTED, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _ranking(ranked: Sequence[RankedSetting], metric: str, objective: str) -> bytes:
    """A line a setting, its mean with its interval, best on top."""
    figure = _figure(0.9 + 0.3 * len(ranked))
    axes = figure.add_subplot()
    scale = 100 if formats.is_share(metric) else 1
    for place, (one, rank) in enumerate(zip(ranked, ranks(len(ranked)), strict=True)):
        ends = (one.score.value - one.score.low, one.score.high - one.score.value)
        reach = np.nan_to_num(np.array(ends))[:, None] * scale
        style = {"fmt": "o", "markersize": 5, "capsize": 2.5, "linewidth": 1.4}
        axes.errorbar([one.score.value * scale], [-place], xerr=reach, color=colour(rank), **style)
    axes.set_yticks([-place for place in range(len(ranked))], [_plain(settings_text(one.settings)) for one in ranked])
    axes.set_ylim(-len(ranked) + 0.4, 0.6)
    _calm(axes)
    axes.set_xlabel(f"{objective}{', %' if scale == 100 else ''}, mean over seeds, 95% interval", fontsize=9)
    return _png(figure)


def _grid(maps: Sequence[HeatMap], told: ScoreText, objective: str) -> bytes:
    figure = _figure(sum(1.1 + 0.42 * len(one.rows) for one in maps))
    panels = figure.subplots(len(maps), 1, squeeze=False, height_ratios=[2 + len(one.rows) for one in maps])[:, 0]
    for axes, one in zip(panels, maps, strict=True):
        shape = (len(one.rows), len(one.columns))
        shades = np.ones((*shape, 3))
        for i, line in enumerate(one.cells):
            for j, cell in enumerate(line):
                text = formats.NOTHING
                if cell is not None:
                    code = colour(cell.rank)
                    full = np.array([int(code[k : k + 2], 16) / 255 for k in (1, 3, 5)])
                    shades[i, j] = DARK_TEXT * full + (1 - DARK_TEXT)
                    text = told.score(cell.score)
                weight = "bold" if cell is not None and cell.rank == 1 else "normal"
                axes.text(j, i, text, ha="center", va="center", fontsize=9, weight=weight)
        axes.imshow(shades, aspect="auto")
        axes.set_xticks(range(shape[1]), [_plain(text) for text in one.columns], fontsize=8)
        axes.set_yticks(range(shape[0]), [_plain(text) for text in one.rows], fontsize=8)
        axes.set_xlabel(_plain(one.column_key), fontsize=9)
        axes.set_ylabel(_plain(one.row_key), fontsize=9)
        axes.set_title(_plain(one.title or objective), fontsize=9)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return _png(figure)


def _curves(curves: Sequence[RunCurve], marks: Sequence[Mark]) -> bytes:
    """Loss over gradient norm by samples seen, coloured by final score, the judge's words marked."""
    figure = _figure(5.4)
    panels = figure.subplots(2, 1, sharex=True)
    names = ("training loss", "gradient norm before clipping")
    for axes, key, name in zip(panels, ("loss", "grad_norm"), names, strict=True):
        for curve in curves:
            dotted = ":" if math.isnan(curve.score) else "-"
            axes.plot(curve.samples, getattr(curve, key), dotted, color=curve.colour, linewidth=1.2)
        for word, marker in MARKERS.items():
            chosen = [mark for mark in marks if mark.word == word]
            if chosen:
                at, height = [mark.samples for mark in chosen], [getattr(mark, key) for mark in chosen]
                axes.plot(
                    at, height, marker, color="#c2417c", fillstyle="none", markeredgewidth=1.6, markersize=7, label=word
                )
        _calm(axes)
        axes.set_ylabel(name, fontsize=9)
    if norm_is_wide(curves):
        panels[1].set_yscale("log")
    if marks:
        panels[0].legend(frameon=False, fontsize=8)
    panels[1].set_xlabel("samples seen (blue: best final score, orange: worst, dotted: none)", fontsize=9)
    return _png(figure)


def _signals(signals: Sequence[EarlySignal], objective: str) -> bytes:
    figure = _figure(2.9)
    panels = figure.subplots(1, len(signals), sharey=True, squeeze=False)[0]
    for axes, signal in zip(panels, signals, strict=True):
        axes.scatter(signal.values, signal.scores, c=list(signal.colours), s=28)
        _calm(axes)
        axes.set_xlabel(signal.name, fontsize=9)
    panels[0].set_ylabel(f"final {objective}", fontsize=9)
    return _png(figure)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics, short enough for a tick."""
    short = text if len(text) <= 60 else f"{text[:59]}…"
    return short.replace("$", r"\$")
