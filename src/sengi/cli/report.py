"""``sengi report``: one run, or one study, as a page, as Markdown and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sengi.cli.console import out
from sengi.errors import InputError

if TYPE_CHECKING:
    from sengi.report.tables import Table


def report(*runs: Path, output: Path | None = None, reference: bool = False) -> int:
    """Write the report of a run or of a study: report.html (one self-contained page), report.md and figures/*.png.

    A run or study that is young, at work or failed gets a report too; it says what is missing.

    Of several studies: claims.md, the paper's claims over all of them.

    Args:
        runs: Run folder, the output_dir of its recipe, or study folder; may be left out with --reference.
        output: Folder to write to; the folder itself when left out. Needed for several studies.
        reference: Add the scores that the paper prints, beside those of the run, and print them here, too.

    Returns:
        0.
    """
    from sengi.report.reference import reference_tables

    if len(runs) > 1:
        return _claims(runs, output)
    run = runs[0] if runs else None
    if run is None and not reference:
        raise InputError("no run folder; write sengi report RUN, or sengi report --reference for the paper's scores")
    if run is None:
        _print_tables(reference_tables())
        return 0
    from sengi.report.run_folder import read_run
    from sengi.report.scores import compare_scores
    from sengi.report.write import write_report
    from sengi.study.results import is_study

    if is_study(run):
        from sengi.report.study_write import write_study_report

        if reference:
            raise InputError(f"{run}: is a study, and --reference is for a run; give a run folder in {run}/runs")
        _print_files(write_study_report(run, output))
        return 0
    if reference:
        folder = read_run(run)
        _print_tables(reference_tables(folder, compare_scores(folder)))
    _print_files(write_report(run, output, reference=reference))
    return 0


def _claims(studies: tuple[Path, ...], output: Path | None) -> int:
    from sengi.report.study_claims import write_claims

    if output is None:
        raise InputError("several studies have no folder in common: add --output FOLDER for their claims.md")
    _print_files([write_claims(studies, output)])
    return 0


def _print_files(files: list[Path]) -> None:
    for path in files:
        out.print(str(path), markup=False, soft_wrap=True)


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
