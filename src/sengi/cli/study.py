"""``sengi study``: many runs, one question; and what became of them."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sengi.cli.console import err, out, unbreakable
from sengi.errors import InputError, SengiError

if TYPE_CHECKING:
    from sengi.study.replay_study import StudyReplay

PATIENCE = 3600  # seconds that 'sengi study stop' waits for the runs to save


def study(study_file: Path) -> int:
    """Start a study, or continue it where it was left: finished runs stay, unfinished ones go on.

    Args:
        study_file: Study file (YAML); docs/study.md lists its keys.

    Returns:
        0 done, 1 a run failed, 2 bad input, 3 stopped with all states saved.
    """
    from sengi.cli.study_display import StudyDisplay
    from sengi.cli.study_table import print_runs
    from sengi.study.chain import run_chain
    from sengi.study.scheduler import run_study
    from sengi.study.study_file import read_study

    request = read_study(study_file)
    with unbreakable(), StudyDisplay(request.file.minimize) as display:
        rows = (run_chain if request.file.stages else run_study)(request, display)
    print_runs(rows, request.file.minimize)
    print_answer(request.folder)
    out.print(f"study   {request.folder}", soft_wrap=True, markup=False)
    print_report(request.folder)
    failed = [row["name"] for row in rows if row["state"] == "failed"]
    if failed:
        again = "their stages chose without them" if request.file.stages else "the same command tries them again"
        err.print(f"{len(failed)} runs failed: {', '.join(failed)}; {again}", markup=False, soft_wrap=True)
    return 1 if failed else 0


def resume(study_file: Path) -> int:
    """Continue a study; the same as ``sengi study``, and also takes the study folder.

    Args:
        study_file: Study file or study folder.
    """
    from sengi.study.study_file import read_study

    if not study_file.is_dir():
        return study(study_file)
    named = read_study(_folder(study_file) / "request.json").folder
    if named.resolve() != study_file.resolve():
        raise InputError(
            f"{study_file}: this study works in {named}, seen from where it was started; run the command there, or "
            "move the folder back"
        )
    return study(study_file / "request.json")


def status(study_file: Path, *, json: bool = False) -> int:
    """Show the runs of a study: state, samples, loss, gradient norm, score, verdict.

    Args:
        study_file: Study file or study folder.
        json: Print study.json instead.
    """
    from sengi.cli.study_table import print_runs

    folder = _folder(study_file)
    text = (folder / "study.json").read_text(encoding="utf-8")
    if json:
        out.file.write(text)
        return 0
    summary = json_module.loads(text)
    alive = _pid_at_work(folder)
    print_runs(summary["runs"], summary["minimize"])
    print_answer(folder)
    state = summary["state"] if alive or summary["state"] != "running" else "interrupted; the same command continues it"
    out.print(f"{folder}: {state}" + (f", process {alive}" if alive else ""), soft_wrap=True, markup=False)
    for row in summary["runs"]:
        if row["reason"]:
            out.print(f"{row['name']}: {row['reason']}", soft_wrap=True, markup=False)
    return 0


def stop(study_file: Path) -> int:
    """Ask a study to save all its runs and stop; returns when it has.

    Args:
        study_file: Study file or study folder.
    """
    from sengi import storage

    folder = _folder(study_file)
    if not (pid := _pid_at_work(folder)):
        raise InputError(f"{folder}: no process works on this study; there is nothing to stop")
    storage.write_json(folder / "stop.json", {"asked": time.time()})
    with err.status(f"waiting for process {pid} to save its runs"):
        deadline = time.monotonic() + PATIENCE
        while _pid_at_work(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
    if _pid_at_work(folder):
        err.print(f"{folder}: process {pid} still saves its runs after an hour; it goes on", markup=False)
        return 1
    finished = json_module.loads((folder / "study.json").read_text(encoding="utf-8"))["state"] == "finished"
    end = "it had just finished" if finished else f"stopped; 'sengi study resume {folder}' continues it"
    out.print(f"{folder}: {end}", soft_wrap=True, markup=False)
    return 0


def replay(
    *studies: Path, json: bool = False, output: Annotated[Path | None, Parameter(name="--output")] = None
) -> int:
    """Replay finished studies: what the judge, ASHA and the median rule would have saved and cost.

    A study or stage that cannot be replayed is named with its reason, and the others are.

    Args:
        studies: Study folders.
        json: Print one JSON object instead.
        output: Also write every number to this JSON file.
    """
    from sengi import storage
    from sengi.study.chain import stage_folders
    from sengi.study.replay_study import replay_study

    if not studies:
        raise InputError("sengi study replay needs one or more study folders")
    with err.status("replaying"):
        replays, left_out = [], []
        for folder in [folder for path in studies for folder in stage_folders(_folder(path))]:
            try:
                replays.append(replay_study(folder))
            except InputError as error:
                left_out.append(str(error))
    if not replays:
        raise InputError("; ".join(left_out) or "no stage of these studies has begun; there is nothing to replay")
    told = {"studies": [one.to_dict() for one in replays], "left_out": left_out}
    text = json_module.dumps(told, indent=1, ensure_ascii=False) + "\n"
    if output is not None:
        storage.create_folder(output.parent)
        storage.write_file(output, text.encode())
    if json:
        out.file.write(text)
        return 0
    for one in replays:
        print_replay(one)
    for reason in left_out:
        out.print(f"left out: {reason}", soft_wrap=True, markup=False)
    return 0


def print_answer(folder: Path) -> None:
    """What the stages of a study chose, and the question and answer of the paper that it was made from."""
    from sengi.study.recording import read_mapping
    from sengi.study.space import settings_text
    from sengi.study.study_presets import PRESETS

    summary = read_mapping(folder / "study.json")
    for stage in summary.get("stages", []):
        out.print(stage["sentence"], soft_wrap=True, markup=False)
    if best := summary.get("best"):
        out.print(f"best settings so far: {settings_text(best)}", soft_wrap=True, markup=False)
    preset = PRESETS.get(read_mapping(folder / "request.json").get("preset") or "")
    if preset is not None:
        out.print(f"question  {preset.question}", soft_wrap=True, markup=False)
        out.print(f"the paper says  {preset.answer} ({preset.source})", soft_wrap=True, markup=False)


def print_report(folder: Path) -> None:
    """Write the report of a study that has ended, and say where."""
    from sengi.report.study_write import write_study_report

    try:
        pages = [path for path in write_study_report(folder) if path.suffix == ".html"]
    except SengiError as error:  # the runs are done; a page that cannot be drawn does not undo that
        out.print(f"report  not written: {error}", soft_wrap=True, markup=False)
        return
    for page in pages:
        out.print(f"report  {page}", soft_wrap=True, markup=False)


def print_replay(one: StudyReplay) -> None:
    """One study: the table of policies, then the findings."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{one.study}: {one.runs} runs, objective {one.objective}"
    drawn = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("policy", no_wrap=True)
    for column in ("saved", "stopped", "regret", "95% interval"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for outcome in one.outcomes:
        drawn.add_row(
            outcome.policy,
            f"{outcome.saved:.0%}",
            f"{outcome.stopped:.1f}",
            f"{outcome.regret:.4f}",
            f"{outcome.low:.4f}–{outcome.high:.4f}",
        )
    out.print(drawn)
    for sentence in [*one.findings, *one.left_out]:
        out.print(sentence, soft_wrap=True, markup=False)


def _folder(path: Path) -> Path:
    """The study folder that a study file or a folder means."""
    from sengi.study.study_file import read_study

    folder = path if path.is_dir() else read_study(path).folder
    if not (folder / "study.json").is_file():
        raise InputError(f"{folder}: no study here yet (it has no study.json); 'sengi study STUDY.yaml' starts one")
    return folder


def _pid_at_work(folder: Path) -> str:
    """The process that holds the study's lock, or empty."""
    from sengi import storage

    try:
        with storage.lock(folder):
            return ""
    except InputError:
        return (folder / "run.lock").read_text(encoding="ascii", errors="replace").strip() or "unknown"
