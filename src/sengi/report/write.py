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
    # Everything is made before anything is written: a failure leaves the last report whole.
    files = {
        "report.html": render_page(report).encode(),
        "report.md": render_markdown(report, list(pictures)).encode(),
        **{f"figures/{name}": picture for name, picture in pictures.items()},
    }
    folder = output or run
    storage.create_folder(folder / "figures")
    for name, content in files.items():
        storage.write_file(folder / name, content)
    return [folder / name for name in files]
