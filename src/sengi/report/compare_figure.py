"""The differences of a comparison as a forest plot: a line a row, its interval, and zero."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sengi.errors import InputError
from sengi.evaluate.compare import Comparison, Row

FORMATS = (".png", ".svg", ".pdf")
DPI = 150
MOST_ROWS = 60  # lines that can be told apart on a page
# Told apart without colour too: by marker. Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "D", "^", "v", "P")
MUTED = "#7d8590"


def check_figure(path: Path) -> None:
    """Refuse a figure that cannot be drawn, before anything is computed.

    Raises:
        InputError: the suffix is none of ``FORMATS``, or matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--figure {path}: the name ends in none of {', '.join(FORMATS)}; rename it")
    _matplotlib()


def draw_comparison(comparison: Comparison, suffix: str) -> bytes:
    """The rows of a comparison, one panel a unit: shares in percentage points, every other metric in its own.

    Args:
        comparison: what to draw; rows beyond the first 60 are left out and the figure says so.
        suffix: ``.png``, ``.svg`` or ``.pdf``.

    Returns:
        The bytes of the file.
    """
    figure_class, canvas, rc_context = _matplotlib()
    rows = comparison.rows[:MOST_ROWS]
    panels = _panels(rows)
    lines = [len(dict.fromkeys((row.task, row.metric) for row in panel)) for panel in panels.values()]
    others = len(comparison.names) - 1
    per_line = 0.34 + 0.13 * (others - 1)
    figure = figure_class(
        figsize=(8.5, 1.1 + 0.25 * others + sum(0.75 + per_line * count for count in lines)),
        dpi=DPI,
        layout="constrained",
    )
    canvas(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[0.6 + count for count in lines])[:, 0]
    for axis, (unit, panel) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, panel, unit, others)
    _legend(figure, comparison)
    if len(comparison.rows) > len(rows):
        axes[-1].set_xlabel(f"{axes[-1].get_xlabel()}\n{len(comparison.rows) - len(rows)} more rows are not drawn")
    buffer = io.BytesIO()
    # Without the date in it, the same comparison gives the same bytes.
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[suffix.lower()]
    with rc_context({"svg.hashsalt": "sengi"}):
        figure.savefig(buffer, format=suffix.lower()[1:], metadata=metadata)
    return buffer.getvalue()


def _matplotlib() -> tuple[Any, Any, Any]:
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("--figure needs matplotlib: pip install 'sengi[report]', or leave --figure out") from None
    return Figure, FigureCanvasAgg, rc_context


def _panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the unit of their difference, shares first."""
    panels: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: not row.is_share):
        panels.setdefault("percentage points" if row.is_share else _plain(row.metric), []).append(row)
    return panels


def _draw_panel(axis: Any, rows: Sequence[Row], unit: str, others: int) -> None:
    names = list(dict.fromkeys((row.task, row.metric) for row in rows))
    places = {name: len(names) - 1 - k for k, name in enumerate(names)}
    axis.axvline(0, color="#30363d", linewidth=0.9)
    for row in rows:
        d, scale, k = row.paired.difference, 100 if row.is_share else 1, row.other - 1
        height = places[row.task, row.metric] + 0.22 * ((others - 1) / 2 - k)
        ends = (0.0, 0.0) if math.isnan(d.low) else (scale * (d.value - d.low), scale * (d.high - d.value))
        colour = COLOURS[k % len(COLOURS)]
        axis.errorbar(
            [scale * d.value],
            [height],
            xerr=np.array(ends)[:, None],
            fmt=MARKERS[k % len(MARKERS)],
            color=colour,
            markersize=5.5,
            markerfacecolor="white" if row.verdict == "no difference shown" else colour,
            linewidth=1.4,
            capsize=2.5,
        )
    counts = {(row.task, row.metric): row.paired.difference.n for row in rows}
    labels = [f"{_plain(task)}\n{_plain(metric)}, n = {counts[task, metric]:,}" for task, metric in names]
    axis.set_yticks([places[name] for name in names], labels, fontsize=8)
    axis.set_ylim(-0.6, len(names) - 0.4)
    better = {row.higher_is_better for row in rows}
    side = "" if len(better) > 1 else "; right of zero is better" if better == {True} else "; left of zero is better"
    axis.set_xlabel(f"difference to A, {unit}{side}", fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color=MUTED, alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)


def _legend(figure: Any, comparison: Comparison) -> None:
    """Who is who, and what filled markers mean, above the panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="none", label=f"A  {_plain(comparison.names[0], 70)} (baseline, at zero)")]
    for k, name in enumerate(comparison.names[1:]):
        letter = chr(ord("B") + k) if k < 25 else str(k + 2)
        marker, colour = MARKERS[k % len(MARKERS)], COLOURS[k % len(COLOURS)]
        handles.append(
            Line2D([], [], linewidth=1.4, marker=marker, color=colour, label=f"{letter}  {_plain(name, 70)}")
        )
    title = "95% intervals; filled where a difference was shown (p corrected by Holm below 0.05)"
    figure.legend(handles=handles, loc="outside upper left", frameon=False, fontsize=8, title=title, title_fontsize=8,
                  alignment="left")  # fmt: skip


def _plain(text: str, limit: int = 44) -> str:
    """Text that matplotlib does not read as mathematics; what is too long keeps its end, where names differ."""
    short = text if len(text) <= limit else f"…{text[1 - limit :]}"
    return short.replace("$", r"\$")
