"""What the study commands print and refuse, without training."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sengi.cli import study_display
from sengi.cli.app import run as sengi
from sengi.cli.study_table import table
from sengi.storage import read_lines
from sengi.study.chain import run_chain
from sengi.study.run_executor import Ended
from sengi.study.scheduler import run_study
from sengi.study.space import Run
from sengi.study.study_file import read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, write_study


class Endless(FakeExecutor):
    """Its runs take some steps, and then go on until they are asked to stop."""

    def _go_on(self, run: Run) -> Ended | None:
        waits = run.name not in self.stopped and (run.folder / "dynamics.jsonl").exists()
        return None if waits else super()._go_on(run)


def row(name: str, score: float) -> dict[str, Any]:
    told = {"samples_seen": 8, "loss": 1.0, "grad_norm": 1.0, "seconds": 1.0, "reason": "", "verdict_reason": ""}
    return (
        {"name": name, "settings": {}, "seed": 1, "state": "finished", "verdict": None, "score": score}
        | told
        | {"interval": None}
    )


@pytest.mark.parametrize(("minimize", "best", "other"), [(True, "0.2500", "0.7500"), (False, "0.7500", "0.2500")])
def test_the_live_table_marks_the_best(monkeypatch: pytest.MonkeyPatch, minimize: bool, best: str, other: str) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        study_display, "err", Console(file=screen, force_terminal=True, width=200, color_system="standard")
    )
    with study_display.StudyDisplay(minimize) as display:
        display.rows([row("001-s1", 0.25), row("002-s1", 0.75)])
    assert f"\x1b[1;32m{best}" in screen.getvalue()
    assert f"\x1b[1;32m{other}" not in screen.getvalue()


# In an ordinary terminal, or a pipe, only the settings give way.
def test_the_table_fits_into_80_columns() -> None:
    screen = io.StringIO()
    settings = {"learning_rate": 2e-5, "effective_batch_size": 3840}
    numbers = {"samples_seen": 825_487, "loss": 1.23456, "grad_norm": 10.5, "settings": settings, "state": "finished"}
    rows = [{**row("011-s2", 0.25), **numbers, "verdict": word} for word in ("suspect", "advise", "continued")]
    Console(file=screen, width=80).print(table(rows, True))
    for word in ("verdict", "suspect", "advise", "continued", "825,487", "finished", "grad norm"):
        assert word in screen.getvalue()


def test_the_live_table_shows_what_a_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(study_display, "err", Console(file=screen, force_terminal=True, width=200, color_system=None))
    at_work = {"settings": {"learning_rate": 2e-5}, "state": "running", "verdict": "suspect", "score": None}
    numbers = {"samples_seen": 12_800, "loss": 1.23456, "grad_norm": 0.5}
    with study_display.StudyDisplay(True) as display:
        display.rows([{**row("001-s1", 0.25), **at_work, **numbers}])
    lines = [re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", line).split() for line in screen.getvalue().splitlines()]
    assert ["run", "settings", "state", "samples", "loss", "grad", "norm", "score", "verdict"] in lines
    assert ["001-s1", "learning_rate", "2e-05", "running", "12,800", "1.2346", "0.5000", "suspect"] in lines


def test_stop_waits_until_the_study_has_saved_and_resume_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path, space={"learning_rate": [1e-3]})
    pid = os.fork()
    if pid == 0:  # the study at work, in another process
        try:
            run_study(read_study(path), make_executor=lambda asked: Endless())
        finally:
            os._exit(3)
    deadline = time.monotonic() + 60
    log = tmp_path / "study/runs/001-s42/dynamics.jsonl"
    while not (log.is_file() and log.read_text() and (tmp_path / "study/study.json").is_file()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sengi(["study", "stop", str(path)]) == 0
    os.waitpid(pid, 0)
    assert f"{tmp_path}/study: stopped; 'sengi study resume {tmp_path}/study' continues it" in capsys.readouterr().out
    assert json.loads((tmp_path / "study/study.json").read_text())["state"] == "stopped"
    assert sengi(["study", "stop", str(path)]) == 2
    assert "no process works on this study" in capsys.readouterr().err
    # and the study goes on from there
    monkeypatch.setattr("sengi.study.local.LocalExecutor", lambda asked: FakeExecutor())
    monkeypatch.setattr("sengi.report.study_write.write_study_report", lambda folder: [])
    saved = len(log.read_text().splitlines())
    assert sengi(["study", "resume", str(tmp_path / "study")]) == 0
    assert 0 < saved < 250
    assert [line["step"] for line in read_lines(log)] == list(range(1, 251))
    assert json.loads((tmp_path / "study/study.json").read_text())["state"] == "finished"


def test_a_study_that_was_moved_is_not_begun_again_in_the_old_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path, space={"learning_rate": [1e-3]})
    run_study(read_study(path), make_executor=lambda asked: FakeExecutor())
    shutil.move(tmp_path / "study", tmp_path / "moved")
    assert sengi(["study", "resume", str(tmp_path / "moved")]) == 2
    assert f"{tmp_path}/moved: this study works in {tmp_path}/study" in " ".join(capsys.readouterr().err.split("\n"))
    assert not (tmp_path / "study").exists()


def test_a_chain_of_a_grid_and_a_range_can_be_read_again(tmp_path: Path) -> None:
    path = write_study(tmp_path, space={"learning_rate": [1e-3]}, num_trials=2)
    content = json.loads(path.read_text())
    del content["space"]
    ranged = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    path.write_text(json.dumps(content | {"stages": {"a": ranged, "b": {"weight_decay": [0.0, 0.1]}}}))
    run_chain(read_study(path), make_executor=lambda asked: FakeExecutor())
    assert [read_study(tmp_path / f"study/{name}/request.json").file.num_trials for name in ("1-a", "2-b")] == [2, None]
