"""``sengi report``: one run as a page, as Markdown and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sengi.cli.console import out
from sengi.errors import InputError

if TYPE_CHECKING:
    from sengi.report.tables import Table


def report(run: Path | None = None, *, output: Path | None = None, reference: bool = False) -> int:
    """Write the report of one run: report.html (one self-contained page), report.md and figures/*.png.

    A run that is young, still running or failed gets a report too; it says what is missing.

    Args:
        run: Run folder, the output_dir of its recipe; may be left out with --reference.
        output: Folder to write to; the run folder itself when left out.
        reference: Add the scores that the paper prints, beside those of the run, and print them here, too.

    Returns:
        0.
    """
    from sengi.report.reference import reference_tables

    if run is None and not reference:
        raise InputError("no run folder; write sengi report RUN, or sengi report --reference for the paper's scores")
    if run is None:
        _print_tables(reference_tables())
        return 0
    from sengi.report.run_folder import read_run
    from sengi.report.scores import compare_scores
    from sengi.report.write import write_report

    if reference:
        folder = read_run(run)
        _print_tables(reference_tables(folder, compare_scores(folder)))
    for path in write_report(run, output, reference=reference):
        out.print(str(path), markup=False, soft_wrap=True)
    return 0


def _print_tables(tables: list[Table]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Drawn
    from rich.text import Text

    for table in tables:
        drawn = Drawn(title=table.title, title_justify="left", box=SIMPLE_HEAD)
        for number, name in enumerate(table.head):
            drawn.add_column(name, justify="right" if number in table.numeric else "left")
        for row in table.rows:
            drawn.add_row(*map(Text, row.cells))
        out.print(drawn)
    out.print(tables[0].note, markup=False)
