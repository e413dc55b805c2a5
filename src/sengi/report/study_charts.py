"""The curves and early signals of a study as charts that people can touch (Bokeh), as JSON for the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sengi.errors import InputError
from sengi.report.charts import calm, calm_legend
from sengi.report.study_contents import StudyReport
from sengi.report.study_curves import EarlySignal, Mark, RunCurve, norm_is_wide
from sengi.report.study_numbers import objective_text

HEIGHTS = {"loss": 340, "grad_norm": 260}
SIGNAL_HEIGHT = 260
MARKERS = {"suspect": "circle", "condemned": "x", "spared": "triangle"}
MARK_COLOUR = "#c2417c"  # neither blue nor orange, and seen in both themes
TITLES = {"loss": "training loss", "grad_norm": "gradient norm before clipping"}


def chart_items(report: StudyReport) -> dict[str, str]:
    """Bokeh JSON items by the element they go to: ``curves`` and ``signals``; only those with something to draw.

    Raises:
        InputError: Bokeh is not installed.
    """
    try:
        from bokeh.embed import json_item
        from bokeh.layouts import column, row
    except ImportError:
        raise InputError("sengi report needs Bokeh for its page: pip install 'sengi[report]'") from None
    layouts: dict[str, Any] = {}
    if report.curves:
        layouts["curves"] = column(_curves(report.curves, report.marks), sizing_mode="stretch_width", spacing=6)
    if report.early:
        panels = [_signal(signal, objective_text(report.results.objective)) for signal in report.early]
        layouts["signals"] = row(panels, sizing_mode="stretch_width", spacing=6)
    return {
        place: json.dumps(json_item(layout), allow_nan=False, separators=(",", ":"))
        for place, layout in layouts.items()
    }


def _curves(curves: Sequence[RunCurve], marks: Sequence[Mark]) -> list[Any]:
    """Loss over gradient norm, on one axis of samples."""
    from bokeh.models import DataRange1d

    x_range = DataRange1d(range_padding=0.02)
    wide = norm_is_wide(curves)
    figures = [_figure(key, x_range, wide and key == "grad_norm") for key in TITLES]
    for plot, key in zip(figures, TITLES, strict=True):
        _add_lines(plot, key, curves)
        _add_marks(plot, key, marks)
    figures[-1].xaxis.axis_label = "samples seen"
    return figures


def _figure(key: str, x_range: Any, log: bool) -> Any:
    from bokeh.plotting import figure

    plot = figure(
        height=HEIGHTS[key],
        sizing_mode="stretch_width",
        x_range=x_range,
        y_axis_type="log" if log else "linear",
        tools="xbox_zoom,xpan,reset,save",
        active_drag="xbox_zoom",
        toolbar_location="above",
        title=TITLES[key] + (" (log scale)" if log else ""),
    )
    calm(plot)
    return plot


def _add_lines(plot: Any, key: str, curves: Sequence[RunCurve]) -> None:
    from bokeh.models import ColumnDataSource, HoverTool

    lines = []
    for curve in curves:
        values = curve.loss if key == "loss" else curve.grad_norm
        score = f"{curve.score:.4g}" if np.isfinite(curve.score) else "none"
        columns: dict[str, Any] = {"x": curve.samples, "y": values}
        columns |= {name: [text] * len(values) for name, text in (("run", curve.name), ("of", curve.settings))}
        source = ColumnDataSource(columns | {"score": [score] * len(values)})
        dash = "solid" if np.isfinite(curve.score) else "dotted"
        lines.append(plot.line("x", "y", source=source, color=curve.colour, line_width=1.8, line_dash=dash))
    tips = [("run", "@run"), ("settings", "@of"), ("score", "@score"), (TITLES[key], "@y{0.0000}")]
    plot.add_tools(HoverTool(renderers=lines, tooltips=[*tips, ("samples", "@x{0,0}")], line_policy="nearest"))


def _add_marks(plot: Any, key: str, marks: Sequence[Mark]) -> None:
    """Where the judge spoke against a run; only the first figure says what the signs mean."""
    from bokeh.models import ColumnDataSource, HoverTool

    for word, marker in MARKERS.items():
        chosen = [mark for mark in marks if mark.word == word]
        if not chosen:
            continue
        columns = {
            "x": [mark.samples for mark in chosen],
            "y": [mark.loss if key == "loss" else mark.grad_norm for mark in chosen],
            "run": [mark.run for mark in chosen],
            "why": [mark.reason for mark in chosen],
        }
        named = {"legend_label": word} if key == "loss" else {}
        dots = plot.scatter(
            "x",
            "y",
            source=ColumnDataSource(columns),
            marker=marker,
            size=11,
            line_width=2.4,
            line_color=MARK_COLOUR,
            fill_color=None,
            **named,
        )
        plot.add_tools(HoverTool(renderers=[dots], tooltips=[("run", "@run"), (word, "@why")]))
    if key == "loss" and marks:
        calm_legend(plot)
        plot.legend[0].location = "top_right"


def _signal(signal: EarlySignal, objective: str) -> Any:
    """One signal across, the final score up, a dot a run."""
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    log = signal.log and bool((signal.values > 0).all()) and bool(signal.values.max() > 4 * signal.values.min())
    plot = figure(
        height=SIGNAL_HEIGHT,
        sizing_mode="stretch_width",
        x_axis_type="log" if log else "linear",
        tools="reset,save",
        toolbar_location="above",
        title=f"final {objective}, up",
    )
    source = ColumnDataSource(
        {"x": signal.values, "y": signal.scores, "run": list(signal.runs), "colour": list(signal.colours)}
    )
    dots = plot.scatter("x", "y", source=source, size=10, color="colour", fill_alpha=0.85)
    plot.add_tools(HoverTool(renderers=[dots], tooltips=[("", "@run"), (signal.name, "@x{0.0000}"), (objective, "@y")]))
    calm(plot)
    plot.xaxis.axis_label = signal.name
    plot.min_border_left = 50
    return plot
