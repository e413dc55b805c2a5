"""The report of a study in GitHub's Markdown, with the pictures of ``study_figures``."""

from __future__ import annotations

from sengi.report.markdown import code_block, escape, facts_line, markdown_table, picture
from sengi.report.study_contents import StudyReport
from sengi.report.study_page import tally


def render_study_markdown(report: StudyReport, figures: list[str]) -> str:
    """The same words and tables as the page.

    Args:
        report: what to print.
        figures: names of the pictures that lie in ``figures/`` beside it.
    """
    head = report.headline

    def drawn(name: str, caption: str) -> list[str]:
        return [picture(name, caption)] if name in figures else []

    parts = [f"# {escape(report.title)}", *map(escape, report.question), f"**{head.state}.** {escape(head.answer)}"]
    parts.append("\n".join(f"- {escape(line)}" for line in (*head.sure, head.cost)))
    parts += [f"> **Look at this:** {escape(line)}" for line in head.warnings]
    if head.next_steps:
        parts.append("**What to do next**")
        parts.append("\n".join(f"{place}. {escape(line)}" for place, line in enumerate(head.next_steps, start=1)))
    parts.append(facts_line(report.figures))
    parts += ["## Ranking", *drawn("ranking.png", "Settings with their intervals")]
    parts += markdown_table(report.settings, heading=False) or ["No run has finished with a score yet."]
    parts += ["## The grid", *(drawn("grid.png", "Mean scores over the grid") or [escape(report.map_note)])]
    parts += [
        "## Do the paper's claims hold here?",
        tally(report.claims),
        *markdown_table(report.claims_table, heading=False),
    ]
    parts += ["## Curves", *drawn("curves.png", "Loss and gradient norm, coloured by final score")]
    if not report.curves:
        parts.append("No step was recorded yet.")
    parts += ["## Early signals against the final score", *drawn("early_signals.png", "Early signals and final scores")]
    parts += markdown_table(report.signals, heading=False) or ["Too few finished runs for a rank correlation."]
    parts += [f"## {report.replay.title}", *markdown_table(report.replay, heading=False)]
    parts.append("\n".join(f"- {escape(line)}" for line in report.findings))
    parts += [
        "## Runs",
        *markdown_table(report.runs, heading=False),
        *markdown_table(report.unscored),
        *markdown_table(report.verdicts),
    ]
    parts += ["## Again", *(f"{escape(purpose)}:\n\n{code_block(command)}" for purpose, command in report.commands)]
    parts.append(f"Written {report.written} by sengi report.")
    return "\n\n".join(part for part in parts if part) + "\n"
