"""Write the report of one run: the page, the Markdown and its pictures."""

from __future__ import annotations

import time
from pathlib import Path

from sengi import storage
from sengi.report.contents import build_report
from sengi.report.figures import draw_figures
from sengi.report.markdown import render_markdown
from sengi.report.page import render_page


def write_report(
    run: Path, output: Path | None = None, now: float | None = None, reference: bool = False
) -> list[Path]:
    """Read a run folder and write ``report.html``, ``report.md`` and ``figures/*.png``.

    Args:
        run: the run folder; it may be young, running or failed.
        output: folder to write to, made if missing; the run folder itself when None.
        now: time of the report, unix seconds; the clock's when None.
        reference: with the paper's scores beside those of the run.

    Returns:
        The files written, the page first.

    Raises:
        InputError: ``run`` is no run folder, or the extra ``report`` is not installed.
        StorageError: a file cannot be written.
    """
    report = build_report(run, time.time() if now is None else now, reference)
    pictures = draw_figures(report)
    return write_files(output or run, render_page(report), render_markdown(report, list(pictures)), pictures)


def write_files(folder: Path, page: str, markdown: str, pictures: dict[str, bytes]) -> list[Path]:
    """Write a report whose parts are all made: a failure before leaves the last one whole.

    Args:
        folder: to write to; made if missing.
        page, markdown: the texts.
        pictures: PNG bytes by file name.

    Returns:
        The files written, the page first.

    Raises:
        StorageError: a file cannot be written.
    """
    files = {
        "report.html": page.encode(),
        "report.md": markdown.encode(),
        **{f"figures/{name}": content for name, content in pictures.items()},
    }
    storage.create_folder(folder / "figures")
    for name, content in files.items():
        storage.write_file(folder / name, content)
    return [folder / name for name in files]
