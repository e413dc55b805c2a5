"""``sengi report``: one run as a page, as Markdown and as pictures."""

from __future__ import annotations

from pathlib import Path

from sengi.cli.console import out


def report(run: Path, *, output: Path | None = None) -> int:
    """Write the report of one run: report.html (one self-contained page), report.md and figures/*.png.

    A run that is young, still running or failed gets a report too; it says what is missing.

    Args:
        run: Run folder, the output_dir of its recipe.
        output: Folder to write to; the run folder itself when left out.

    Returns:
        0.
    """
    from sengi.report.write import write_report

    for path in write_report(run, output):
        out.print(str(path), markup=False, soft_wrap=True)
    return 0
