"""The one self-contained HTML page of a study; the same frame, style and safety as the page of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sengi.report import formats
from sengi.report.charts import bokeh_script
from sengi.report.page import FOLDER, content_policy, page_environment, script_json
from sengi.report.study_charts import chart_items
from sengi.report.study_contents import StudyReport
from sengi.report.study_maps import BEST, MIDDLE, WORST
from sengi.report.study_numbers import ScoreText, objective_text
from sengi.study.claim_rules import ClaimResult
from sengi.study.ranking import RankedSetting

LEFT, RIGHT = 4, 156  # ends of the line on which an interval is drawn


@dataclass(frozen=True)
class Bars:
    """A column of intervals on one scale: its ends as text, and a drawing a row."""

    low: str
    high: str
    drawn: list[Markup]


def render_study_page(report: StudyReport) -> str:
    """The page as text, one file of about 1.5 MB.

    Args:
        report: what to print.

    Raises:
        InputError: Bokeh is not installed.
    """
    charts = chart_items(report)
    scripts = [bokeh_script(), (FOLDER / "study_page.js").read_text(encoding="utf-8")] if charts else []
    checks = report.results.judge.checks()
    template = page_environment().get_template("study_page.html.jinja")
    return template.render(
        report=report,
        head=report.headline,
        objective=objective_text(report.results.objective),
        policy=content_policy(scripts),
        style=Markup("".join((FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "study_page.css"))),
        scripts=[Markup(script) for script in scripts],
        charts={place: Markup(script_json(item)) for place, item in charts.items()},
        bars=_bars(report.ranked, report.numbers),
        shade=_shade,
        score=report.numbers.score,
        legend=_legend(report),
        tally=tally(report.claims),
        early_at=formats.count(checks[-1] if checks else 0),
    )


def tally(claims: Sequence[ClaimResult]) -> str:
    """How many claims hold, do not, and cannot be told, in one sentence."""
    parts = []
    words = (("holds", "holds", "hold"), ("does not hold", "does not hold", "do not hold"))
    for verdict, one, several in (*words, ("cannot tell", "cannot be told here", "cannot be told here")):
        numbers = [str(claim.number) for claim in claims if claim.verdict == verdict]
        if numbers:
            parts.append(f"{len(numbers)} {one if len(numbers) == 1 else several} ({', '.join(numbers)})")
    return f"Of ten claims {', '.join(parts)}."


def _shade(rank: float) -> str:
    """A tint that both themes' text can be read on: orange for the worst, blue for the best."""
    red, green, blue = BEST if rank >= 0.5 else WORST
    return f"rgba({red}, {green}, {blue}, {0.06 + 0.94 * abs(rank - 0.5):.2f})"


def _legend(report: StudyReport) -> Markup:
    """Worst to best as a strip of colour with the scores at its ends."""
    scores = [run.score.value for run in report.results.scored if run.score is not None]
    if not scores:
        return Markup("")
    worst, best = (max(scores), min(scores)) if report.results.minimize else (min(scores), max(scores))
    stops = ", ".join(f"rgb{colour}" for colour in (WORST, MIDDLE, BEST))
    ends = [report.numbers.score(value) for value in (worst, best)]
    return Markup('worst {}<span class="swatch" style="background: linear-gradient(90deg, {})"></span>{} best;').format(
        ends[0], stops, ends[1]
    )


def _bars(ranked: Sequence[RankedSetting], told: ScoreText) -> Bars | None:
    """The intervals of all settings on one scale; None where there are none."""
    ends = [end for one in ranked for end in (one.score.value, one.score.low, one.score.high) if math.isfinite(end)]
    if len(ranked) < 2 or max(ends) == min(ends):
        return None
    low, high = min(ends), max(ends)

    def across(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    drawn = []
    for one in ranked:
        left, right = (one.score.value if math.isnan(end) else end for end in (one.score.low, one.score.high))
        drawn.append(
            Markup(
                '<svg class="place" viewBox="0 0 160 20" aria-hidden="true">'
                f'<line class="rail" x1="{LEFT}" x2="{RIGHT}" y1="10" y2="10"/>'
                f'<line x1="{across(left):.1f}" x2="{across(right):.1f}" y1="10" y2="10"/>'
                f'<circle cx="{across(one.score.value):.1f}" cy="10" r="3.5"/></svg>'
            )
        )
    return Bars(told.score(low), told.score(high), drawn)
