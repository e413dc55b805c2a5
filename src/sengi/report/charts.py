"""The curves as charts that people can touch: three Bokeh figures with one shared x axis.

The figures leave as JSON, not as a script, so that the page can name each of its scripts by hash. They hold every
x axis of a curve; page.js switches between them and paints them in the colours of the page's theme.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from sengi.errors import InputError
from sengi.report import formats
from sengi.report.alarms import alarm_marks
from sengi.report.curves import Curve, HeldOut, clip_norm, curves_of, held_out_of
from sengi.report.phases import border_marks, chosen_marks
from sengi.report.run_folder import RunFolder
from sengi.report.timeline import ScoreCurve, score_curves

COLOURS = {
    "loss": "#3b82c4",
    "grad_norm": "#d9822b",
    "learning_rate": "#2f9e74",
    "held_out": "#c2417c",
    "chosen": "#7c5cc4",
    "alarm": "#c0392b",
}
SCORE_COLOURS = ("#3b82c4", "#d9822b", "#2f9e74", "#c2417c", "#7c5cc4", "#8a6d3b", "#3aa6b9", "#6b7280", "#b5a100")
MUTED = "#7d8590"
HEIGHT = {"loss": 320, "grad_norm": 250, "learning_rate": 190}


def bokeh_script() -> str:
    """BokehJS itself, as text for an inline script (about 1.3 MB).

    Raises:
        InputError: Bokeh is not installed.
    """
    try:
        from bokeh.resources import Resources
    except ImportError:
        raise InputError("sengi report needs Bokeh for its page: pip install 'sengi[report]'") from None
    return "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error").js_raw)


def chart_json(run: RunFolder) -> str | None:
    """The three figures as a Bokeh JSON item; None for a run without a step.

    Raises:
        InputError: Bokeh is not installed.
    """
    curves = curves_of(run)
    if not curves:
        return None
    try:
        from bokeh.embed import json_item
        from bokeh.layouts import column
        from bokeh.models import DataRange1d
    except ImportError:
        raise InputError("sengi report needs Bokeh for its page: pip install 'sengi[report]'") from None
    x_range = DataRange1d(range_padding=0.02, name="x_range")
    figures = [_figure(curve, x_range) for curve in curves]
    _add_held_out(figures[0], held_out_of(run))
    _add_clip_line(figures[1], clip_norm(run))
    _start_at_zero(figures[2], curves[2])
    if scores := drawn_scores(run):
        figures.insert(1, _score_figure(scores, x_range))
    _add_phases(figures, run)
    _add_alarms(figures, run)
    figures[-1].xaxis.axis_label = "step"
    layout = column(figures, sizing_mode="stretch_width", spacing=6)
    return json.dumps(json_item(layout), allow_nan=False, separators=(",", ":"))


def _figure(curve: Curve, x_range: Any) -> Any:
    """One figure: the raw line always, the smooth one over it."""
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    plot = figure(
        name=f"figure-{curve.key}",
        height=HEIGHT[curve.key],
        sizing_mode="stretch_width",
        x_range=x_range,
        y_axis_type="log" if curve.log else "linear",
        tools="xbox_zoom,xpan,reset,save",
        active_drag="xbox_zoom",
        toolbar_location="above",
        title=curve.title + (" (log scale)" if curve.log else ""),
    )
    columns = {"x": curve.axes["step"], "y": curve.values, **curve.axes}
    if curve.smooth is not None:
        columns["smooth"] = curve.smooth
    source = ColumnDataSource({key: np.asarray(column, dtype=np.float64) for key, column in columns.items()})
    source.name = f"source-{curve.key}"
    raw = plot.line("x", "y", source=source, color=COLOURS[curve.key], line_width=1.4)
    if curve.smooth is not None:
        raw.glyph.line_alpha = 0.45
        plot.line("x", "smooth", source=source, color=COLOURS[curve.key], line_width=2.4)
    if curve.values.size < 40:
        plot.scatter("x", "y", source=source, color=COLOURS[curve.key], size=4)
    tips = [(curve.title, "@y{0.0000e+0}" if curve.key == "learning_rate" else "@y{0.0000}")]
    tips += [("step", "@step{0,0}"), ("samples", "@samples{0,0}"), ("tokens", "@tokens{0,0}")]
    plot.add_tools(HoverTool(renderers=[raw], tooltips=tips, mode="vline", line_policy="nearest"))
    calm(plot)
    return plot


def calm(plot: Any) -> None:
    """Thin lines, no boxes, nothing painted behind: the page shines through in both themes."""
    from bokeh.models import BasicTickFormatter

    plot.background_fill_color = plot.border_fill_color = None
    plot.outline_line_color = None
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.title.text_font_size = "13px"
    plot.title.text_color = MUTED
    plot.xgrid.grid_line_color = None
    plot.ygrid.grid_line_color = MUTED
    plot.ygrid.grid_line_alpha = 0.22
    plot.min_border_left = 64
    for axis in (*plot.xaxis, *plot.yaxis):
        axis.axis_line_color = axis.major_tick_line_color = MUTED
        axis.minor_tick_line_color = None
        axis.major_label_text_color = axis.axis_label_text_color = MUTED
        axis.major_label_text_font_size = axis.axis_label_text_font_size = "12px"
        axis.axis_label_text_font_style = "normal"
    for axis in plot.xaxis:
        if isinstance(axis.formatter, BasicTickFormatter):  # that of a logarithmic axis has no such switch
            axis.formatter.use_scientific = False
    plot.y_range.range_padding = 0.08


def _add_held_out(plot: Any, held_out: HeldOut) -> None:
    """Held-out losses as diamonds with their intervals; no line, nothing is known between them."""
    if not held_out.names:
        return
    from bokeh.models import ColumnDataSource, HoverTool

    columns: dict[str, Any] = {"x": held_out.axes["step"], "y": held_out.values, **held_out.axes}
    columns |= {"low": held_out.low, "high": held_out.high, "name": held_out.names}
    source = ColumnDataSource(columns)
    source.name = "source-held_out"
    colour = COLOURS["held_out"]
    plot.segment("x", "low", "x", "high", source=source, color=colour, line_width=2)
    dots = plot.scatter(
        "x",
        "y",
        source=source,
        color=colour,
        size=9,
        marker="diamond",
        legend_label="held-out loss, 95% interval",
    )
    tips = [("held-out loss", "@y{0.0000}"), ("of", "@name"), ("step", "@step{0,0}")]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=tips))
    plot.legend[0].location = "top_right"
    calm_legend(plot)


def _add_phases(figures: list[Any], run: RunFolder) -> None:
    """A dotted line in every figure where a phase begins, and on the loss the checkpoints that were chosen."""
    from bokeh.models import ColumnDataSource, HoverTool

    sources = {}
    for name, marks in (("phases", border_marks(run)), ("chosen", chosen_marks(run))):
        columns = {"x": marks.axes["step"], "y": marks.values, **marks.axes, "name": marks.names}
        sources[name] = ColumnDataSource(columns)
        sources[name].name = f"source-{name}"
    if sources["phases"].data["name"]:
        for figure in figures:
            figure.vspan(x="x", source=sources["phases"], line_color=MUTED, line_dash="dotted", line_width=1.4)
        figures[0].title.text += ", dotted: a phase begins"
    if sources["chosen"].data["name"]:
        stars = figures[0].scatter("x", "y", source=sources["chosen"], marker="star", size=15, color=COLOURS["chosen"])
        tips = [("checkpoint", "@name"), ("step", "@step{0,0}"), ("samples", "@samples{0,0}")]
        figures[0].add_tools(HoverTool(renderers=[stars], tooltips=tips))
        figures[0].title.text += ", star: the checkpoint chosen in it"


def drawn_scores(run: RunFolder) -> list[ScoreCurve]:
    """The score curves that share an axis from 0 to 100%, as many as can be told apart."""
    return [curve for curve in score_curves(run) if formats.is_share(curve.metric)][: len(SCORE_COLOURS)]


def _add_alarms(figures: list[Any], run: RunFolder) -> None:
    """A dashed line in every figure where an alarm was raised, and its name at the loss."""
    from bokeh.models import ColumnDataSource, HoverTool

    marks = alarm_marks(run)
    if not marks.names:
        return
    source = ColumnDataSource({"x": marks.axes["step"], "y": marks.values, **marks.axes, "name": marks.names})
    source.name = "source-alarms"
    for figure in figures:
        figure.vspan(x="x", source=source, line_color=COLOURS["alarm"], line_dash="dashed", line_width=1.2)
    points = figures[0].scatter("x", "y", source=source, marker="triangle", size=11, color=COLOURS["alarm"])
    tips = [("alarm", "@name"), ("step", "@step{0,0}"), ("samples", "@samples{0,0}")]
    figures[0].add_tools(HoverTool(renderers=[points], tooltips=tips))
    figures[0].title.text += ", dashed: an alarm"


def _score_figure(scores: list[ScoreCurve], x_range: Any) -> Any:
    """One line a task, in percent, each point with its interval."""
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    plot = figure(
        name="figure-scores",
        height=HEIGHT["loss"],
        sizing_mode="stretch_width",
        x_range=x_range,
        tools="xbox_zoom,xpan,reset,save",
        active_drag="xbox_zoom",
        toolbar_location="above",
        title="scores, %, with 95% intervals",
    )
    for number, (curve, colour) in enumerate(zip(scores, SCORE_COLOURS, strict=False)):
        columns: dict[str, Any] = {"x": curve.axes["step"], "y": 100 * curve.values, **curve.axes}
        columns |= {"low": 100 * curve.low, "high": 100 * curve.high, "name": [curve.name] * curve.values.size}
        source = ColumnDataSource(columns)
        source.name = f"source-scores-{number}"
        plot.line("x", "y", source=source, color=colour, line_width=1.6, legend_label=curve.name)
        plot.segment("x", "low", "x", "high", source=source, color=colour, line_alpha=0.5, line_width=1.4)
        dots = plot.scatter("x", "y", source=source, color=colour, size=7)
        tips = [("score", "@y{0.0}% (@low{0.0} to @high{0.0})"), ("of", "@name"), ("step", "@step{0,0}")]
        plot.add_tools(HoverTool(renderers=[dots], tooltips=[*tips, ("samples", "@samples{0,0}")]))
    calm(plot)
    calm_legend(plot)
    plot.add_layout(plot.legend[0], "below")
    plot.legend[0].orientation = "horizontal"
    plot.legend[0].ncols = 3
    return plot


def calm_legend(plot: Any) -> None:
    """A legend without a box."""
    legend = plot.legend[0]
    legend.background_fill_color = legend.border_line_color = None
    legend.label_text_color = MUTED
    legend.label_text_font_size = "12px"


def _add_clip_line(plot: Any, limit: float) -> None:
    """A dashed line at max_grad_norm; it does not stretch the axis."""
    if not math.isfinite(limit):
        return
    from bokeh.models.annotations import Span

    plot.add_layout(Span(location=limit, dimension="width", line_color=MUTED, line_dash="dashed", line_width=1))
    plot.title.text += f", dashed: clipped above {limit:g}"


def _start_at_zero(plot: Any, curve: Curve) -> None:
    """A constant rate must look constant, and a decay show how far it goes: the axis starts at zero."""
    top = float(np.nanmax(curve.values, initial=0.0))
    if top > 0:
        plot.yaxis.formatter.precision = 1
        plot.y_range.start, plot.y_range.end = 0, 1.15 * top
