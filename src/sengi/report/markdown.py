"""The report as Markdown for model cards and repositories, with the same tables as the page."""

from __future__ import annotations

import re

from sengi.report.contents import Report
from sengi.report.page import shorten
from sengi.report.scores import Example
from sengi.report.tables import Table

CAPTIONS = {
    "loss.png": "Training loss, and held-out loss where it was taken",
    "score_curves.png": "Scores over the training",
    "grad_norm.png": "Gradient norm before clipping",
    "learning_rate.png": "Learning rate",
}


def render_markdown(report: Report, figures: list[str]) -> str:
    """The report in GitHub's Markdown.

    Args:
        report: what to print.
        figures: names of the pictures that lie in ``figures/`` beside it.
    """
    verdict = report.verdict
    parts = [f"# {escape(report.title)}", f"**{verdict.state}.** {escape(verdict.progress)}"]
    parts += ["\n".join(f"- {escape(line)}" for line in verdict.outcome)]
    parts += [f"> **Look at this:** {escape(line)}" for line in verdict.warnings]
    if report.figures:
        parts.append(facts_line(report.figures))
    parts.append("## Curves")
    parts += [picture(name, CAPTIONS[name]) for name in CAPTIONS if name in figures]
    parts += (
        [" ".join(report.curve_notes), *markdown_table(report.milestones)]
        if report.run.steps
        else ["No step was recorded yet."]
    )
    parts += markdown_table(report.phases)
    if report.alarms.rows:
        parts += ["## Alarms", *markdown_table(report.alarms, heading=False)]
    parts.append("## Before and after")
    if "scores.png" in figures:
        parts.append(picture("scores.png", "Share of right answers before and after"))
    parts += markdown_table(report.timeline)
    for table in report.scores:
        parts += markdown_table(table)
    for table in report.topics:
        parts += markdown_table(table)
    if not report.scores:
        parts.append("No evaluation was written yet.")
    if report.reference:
        parts += ["## The paper's scores", *(block for table in report.reference for block in markdown_table(table))]
    if report.examples:
        parts += ["## Answers", _answers(report.examples)]
    parts.append("## Data")
    for table in report.data:
        parts += markdown_table(table)
    if "lengths.png" in figures:
        parts.append(picture("lengths.png", "Length of the samples in tokens"))
    parts += ["## Recipe", *markdown_table(report.paper), *markdown_table(report.recipe)]
    parts += ["## Throughput", *markdown_table(report.throughput, heading=False)]
    parts += ["## Environment", *markdown_table(report.environment, heading=False)]
    parts += ["## Again", *(f"{escape(purpose)}:\n\n{code_block(command)}" for purpose, command in report.commands)]
    notes = [f"missing: {line}" for line in report.run.missing] + report.run.repairs
    if notes:
        parts += ["## Missing or mended while reading", "\n".join(f"- {escape(line)}" for line in notes)]
    parts.append(f"Written {report.written} by sengi report.")
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that means nothing to Markdown, on one line: no markup, no table cell, no HTML, no link."""
    one_line = " ".join(text.split())
    escaped = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", one_line)
    # GitHub links bare addresses; without the colon in place they stay text.
    escaped = re.sub(r"\b(https?|ftp)://", r"\1&#58;//", escaped)
    return escaped.replace("<", "&lt;").replace(">", "&gt;")


def markdown_table(table: Table, heading: bool = True) -> list[str]:
    """Heading, table and note as separate blocks; nothing for a table without rows."""
    if not table.rows:
        return []
    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.head))]
    rows = [map(escape, table.head), rule, *(map(escape, row.cells) for row in table.rows)]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    blocks = [f"### {escape(table.title)}"] if heading and table.title else []
    return [*blocks, lines, *([escape(table.note)] if table.note else [])]


def facts_line(facts: list[tuple[str, str]]) -> str:
    """Labels above their values, as one table."""
    rows = [[escape(label) for label, _ in facts], ["---"] * len(facts), [escape(value) for _, value in facts]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _answers(examples: list[Example]) -> str:
    rows = [["question", "expected", "before", "after"], ["---"] * 4]
    for e in examples:
        before = "" if e.before is None else _marked(e.before, e.right_before)
        rows.append(
            [
                escape(shorten(e.question or f"{e.task} {e.id}")),
                escape(shorten(e.answer)),
                before,
                _marked(e.after, e.right_after),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _marked(prediction: str, right: bool) -> str:
    return f"{'✓' if right else '✗'} {escape(shorten(prediction)) or '(nothing)'}"


def picture(name: str, caption: str) -> str:
    """A picture that lies in ``figures/`` beside the file."""
    return f"![{caption}](figures/{name})"


def code_block(command: str) -> str:
    """A command as a code block; its fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{' '.join(command.splitlines())}\n{fence}"
