"""The curves, scores and lengths as PNG pictures for Markdown, by matplotlib without a display."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from sengi.errors import InputError
from sengi.report import formats
from sengi.report.alarms import alarm_marks
from sengi.report.charts import COLOURS, MUTED, SCORE_COLOURS, drawn_scores
from sengi.report.contents import Report
from sengi.report.curves import Curve, HeldOut, clip_norm, curves_of, held_out_of
from sengi.report.phases import border_marks, chosen_marks
from sengi.report.run_folder import RunFolder
from sengi.report.scores import Comparison
from sengi.report.timeline import ScoreCurve

DPI = 150
SCORE_ROWS = 40


def draw_figures(report: Report) -> dict[str, bytes]:
    """All pictures that the run has numbers for.

    Args:
        report: what to draw.

    Returns:
        PNG bytes by file name (``loss.png``, ``grad_norm.png``, ``learning_rate.png``, ``score_curves.png``,
        ``scores.png``, ``lengths.png``).

    Raises:
        InputError: matplotlib is not installed.
    """
    pictures = {}
    for curve in curves_of(report.run):
        held_out = held_out_of(report.run) if curve.key == "loss" else None
        clip = clip_norm(report.run) if curve.key == "grad_norm" else math.nan
        pictures[f"{curve.key}.png"] = _draw_curve(curve, held_out, clip, report.run)
    if scores := drawn_scores(report.run):
        pictures["score_curves.png"] = _draw_score_curves(scores)
    shares = [c for c in report.comparisons if formats.is_share(c.before.metric) and not c.part_of]
    if shares:
        pictures["scores.png"] = _draw_scores(shares[:SCORE_ROWS])
    edges, counts = report.lengths
    if counts and len(edges) == len(counts) + 1 and all(map(math.isfinite, (*edges, *counts))):
        pictures["lengths.png"] = _draw_lengths(edges, counts)
    return pictures


def _axes(height: float) -> tuple[Any, Any]:
    """A white figure and its axes, without a frame."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("sengi report needs matplotlib for its figures: pip install 'sengi[report]'") from None
    figure = Figure(figsize=(8, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=MUTED, alpha=0.2, linewidth=0.6)
    axes.tick_params(labelsize=9)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Without the date and version in it, the same run gives the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_curve(curve: Curve, held_out: HeldOut | None, clip: float, run: RunFolder) -> bytes:
    figure, axes = _axes(3.0 if curve.key != "learning_rate" else 2.2)
    steps, colour = curve.axes["step"], COLOURS[curve.key]
    faint = 0.4 if curve.smooth is not None else 1.0
    marker = "." if steps.size < 40 else None
    axes.plot(steps, curve.values, color=colour, linewidth=1, alpha=faint, marker=marker, label="each step")
    if curve.smooth is not None:
        axes.plot(steps, curve.smooth, color=colour, linewidth=1.8, label="moving median")
    if held_out and held_out.names:
        reach = np.nan_to_num(np.abs(np.stack((held_out.values - held_out.low, held_out.high - held_out.values))))
        at, style = held_out.axes["step"], {"fmt": "D", "markersize": 4, "capsize": 3}
        axes.errorbar(at, held_out.values, reach, color=COLOURS["held_out"], label="held-out, 95% interval", **style)
    if curve.log:
        axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    if math.isfinite(clip) and bottom <= clip <= top:
        axes.axhline(clip, color=MUTED, linestyle="--", linewidth=0.8, label=f"clipped above {clip:g}")
    for number, border in enumerate(border_marks(run).axes["step"]):
        axes.axvline(border, color=MUTED, linestyle=":", linewidth=1, label="a phase begins" if number == 0 else None)
    for number, raised in enumerate(alarm_marks(run).axes["step"]):
        label = "an alarm" if number == 0 else None
        axes.axvline(raised, color=COLOURS["alarm"], linestyle="--", linewidth=1, label=label)
    if curve.key == "loss" and (chosen := chosen_marks(run)).names:
        style = {"marker": "*", "markersize": 10, "linestyle": "", "label": "chosen in its phase"}
        axes.plot(chosen.axes["step"], chosen.values, color=COLOURS["chosen"], **style)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(curve.title, fontsize=9)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def _draw_score_curves(scores: list[ScoreCurve]) -> bytes:
    """A line a task over the steps, in percent, each point with its interval."""
    figure, axes = _axes(3.2)
    for curve, colour in zip(scores, SCORE_COLOURS, strict=False):
        reach = np.nan_to_num(np.abs(np.stack((curve.values - curve.low, curve.high - curve.values))))
        style = {"marker": "o", "markersize": 3.5, "linewidth": 1.4, "elinewidth": 0.8, "capsize": 2}
        name = _plain(curve.name)
        axes.errorbar(curve.axes["step"], 100 * curve.values, 100 * reach, color=colour, label=name, **style)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel("score, %, with 95% intervals", fontsize=9)
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    return _png(figure)


def _draw_scores(rows: list[Comparison]) -> bytes:
    """A line a score: grey before, coloured after, each with its interval."""
    figure, axes = _axes(0.8 + 0.42 * len(rows))
    heights = np.arange(len(rows))[::-1]
    for offset, kind, colour in ((0.13, "before", MUTED), (-0.13, "after", COLOURS["loss"])):
        chosen = [getattr(c, kind) for c in rows]
        values = np.array([s.value for s in chosen])
        reach = np.nan_to_num(np.abs([[s.value - s.low for s in chosen], [s.high - s.value for s in chosen]]))
        face = "white" if kind == "before" else colour
        style = {"fmt": "o", "markersize": 5, "markerfacecolor": face, "label": kind}
        axes.errorbar(100 * values, heights + offset, xerr=100 * reach, color=colour, **style)
    axes.set_yticks(heights, [_plain(f"{c.before.task}, {c.before.group}") for c in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("right answers, %, with 95% intervals", fontsize=9)
    axes.grid(axis="x", color=MUTED, alpha=0.2, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return _png(figure)


def _draw_lengths(edges: list[float], counts: list[float]) -> bytes:
    figure, axes = _axes(2.6)
    # Bars of equal width, as on the page: the bins often double, and true widths would flatter the long ones.
    places = np.arange(len(counts) + 1)
    axes.bar(places[:-1] + 0.5, counts, width=0.94, color=COLOURS["loss"], alpha=0.85)
    every = max(1, math.ceil(len(edges) / 12))
    axes.set_xticks(places[::every], [formats.short_count(edge) for edge in edges[::every]])
    axes.set_xlabel("tokens a sample", fontsize=9)
    axes.set_ylabel("samples", fontsize=9)
    return _png(figure)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics, short enough for a tick."""
    short = text if len(text) <= 40 else f"{text[:39]}…"
    return short.replace("$", r"\$")
