"""One self-contained HTML page of a run: nothing is loaded, nothing foreign runs, tables need no JavaScript.

A content security policy in the page lets only the scripts below run, each named by its hash; text from the run
(names, answers, paths) is escaped by Jinja and could not run even if it were not.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sengi.report import svg
from sengi.report.charts import bokeh_script, chart_json
from sengi.report.contents import Report

FOLDER = Path(__file__).parent
ANSWER_LIMIT = 400


def page_environment() -> Environment:
    """Jinja for pages: all text is escaped, a name that is missing is an error."""
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(report: Report) -> str:
    """The page as text, one file of about 1.5 MB.

    Args:
        report: what to print.

    Raises:
        InputError: Bokeh is not installed.
    """
    chart = chart_json(report.run)
    scripts = [bokeh_script(), (FOLDER / "page.js").read_text(encoding="utf-8")] if chart else []
    environment = page_environment()
    environment.filters["shorten"] = shorten
    edges, counts = report.lengths
    bars = iter([svg.score_bar(comparison) for comparison in report.comparisons])
    return environment.get_template("page.html.jinja").render(
        report=report,
        verdict=report.verdict,
        run=report.run,
        policy=content_policy(scripts),
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        chart=Markup(script_json(chart)) if chart else None,
        histogram=svg.histogram(edges, counts, "Samples by length in tokens"),
        scores=[(table, [next(bars) for _ in table.rows]) for table in report.scores],
    )


def content_policy(scripts: list[str]) -> str:
    """A policy that loads nothing and runs only these inline scripts, by SHA-256.

    Args:
        scripts: the exact text between each pair of script tags.
    """
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def script_json(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def shorten(text: str, limit: int = ANSWER_LIMIT) -> str:
    """The first ``limit`` characters, with the number of those left out."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"
