"""Write the report of a study: the page, the Markdown and its pictures; of a study of several stages, one a stage."""

from __future__ import annotations

import time
from pathlib import Path

from sengi.errors import InputError
from sengi.report.study_contents import build_study_report
from sengi.report.study_figures import draw_study_figures
from sengi.report.study_markdown import render_study_markdown
from sengi.report.study_page import render_study_page
from sengi.report.write import write_files
from sengi.study.chain import stage_folders


def write_study_report(folder: Path, output: Path | None = None, now: float | None = None) -> list[Path]:
    """Read a study folder and write ``report.html``, ``report.md`` and ``figures/*.png``.

    Args:
        folder: the study folder; the study may be at work, stopped or have failed runs. Of a study of several stages
            every stage that has begun gets its report, in a folder of its name.
        output: folder to write to, made if missing; the study folder itself when None.
        now: time of the report, unix seconds; the clock's when None.

    Returns:
        The files written, each page before its pictures.

    Raises:
        InputError: ``folder`` is no study folder, no stage of it has begun, or the extra ``report`` is not installed.
        StorageError: a file cannot be written.
    """
    when, written = time.time() if now is None else now, []
    if not (folders := stage_folders(folder)):
        raise InputError(f"{folder}: none of its stages has begun; sengi study resume {folder} begins them")
    for one in folders:
        report = build_study_report(one, when)
        pictures = draw_study_figures(report)
        page, markdown = render_study_page(report), render_study_markdown(report, list(pictures))
        written += write_files((output or folder) / one.relative_to(folder), page, markdown, pictures)
    return written
