"""Stops that hold: verdicts that outlive a kill, hindsight that stops nobody, deaths on request, runs tried again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sengi.errors import SengiError, StoppedByRequest
from sengi.storage import lock, read_lines
from sengi.study import scheduler
from sengi.study.chain import run_chain
from sengi.study.judge import Verdict
from sengi.study.lease import holder
from sengi.study.results import read_results
from sengi.study.run_executor import Ended
from sengi.study.scheduler import StudyObserver, run_study
from sengi.study.space import Run
from sengi.study.study_file import StudyFile, read_study
from sengi.study.verdicts import VerdictLog, last_words
from sengi.study.watched import Watched

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, Listener, write_study

TERMINATE = {"mode": "terminate", "check_samples": 400, "early_samples": 1200, "fair_share": 0.4}
CALM_AND_WILD = {"learning_rate": [1e-3, 8e-3]}


class Killed(BaseException):
    """What kill -9 does to a session, as far as files go: nothing more is written."""


class KilledAtVerdict(FakeExecutor):
    def stop(self, run: Run) -> None:
        raise Killed


class CrashesWhenStopped(FakeExecutor):
    def _go_on(self, run: Run) -> Ended | None:
        return self._end(run, 1, "disk full", "failed") if run.name in self.stopped else super()._go_on(run)


class SlowWhenCalm(FakeExecutor):
    """The calm run takes one look in four."""

    looks = 0

    def _go_on(self, run: Run) -> Ended | None:
        self.looks += run.name == "001-s42"
        return None if run.name == "001-s42" and self.looks % 4 else super()._go_on(run)


def go(path: Path, executor: FakeExecutor, observer: StudyObserver | None = None) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in run_study(read_study(path), observer, make_executor=lambda asked: executor)}


def test_a_verdict_outlives_a_study_that_dies_before_the_run_has_ended(tmp_path: Path) -> None:
    path = write_study(tmp_path, space=CALM_AND_WILD, early_termination=TERMINATE)
    with pytest.raises(Killed):
        go(path, KilledAtVerdict())
    assert not (tmp_path / "study/runs/002-s42/outcome.json").exists()
    again = FakeExecutor()
    rows = go(path, again)
    assert again.started == ["001-s42"]
    assert {name: row["state"] for name, row in rows.items()} == {"001-s42": "finished", "002-s42": "stopped"}
    wild = rows["002-s42"]
    assert (wild["verdict"], wild["reason"]) == ("stop", wild["verdict_reason"])
    assert 800 <= wild["samples_seen"] < 1200
    outcome = json.loads((tmp_path / "study/runs/002-s42/outcome.json").read_text())
    assert (outcome["state"], outcome["check"]) == ("stopped", 800)


def test_a_condemned_run_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    path = write_study(tmp_path, space=CALM_AND_WILD, early_termination=TERMINATE)
    assert go(path, CrashesWhenStopped())["002-s42"]["state"] == "failed"
    again = FakeExecutor()
    assert go(path, again)["002-s42"]["state"] == "stopped"
    assert again.started == []


def test_a_run_that_is_far_ahead_is_not_stopped_in_hindsight(tmp_path: Path) -> None:
    path, listener = write_study(tmp_path, space=CALM_AND_WILD, early_termination=TERMINATE), Listener()
    rows = go(path, SlowWhenCalm(), listener)
    wild = rows["002-s42"]
    assert (wild["state"], wild["samples_seen"], wild["verdict"]) == ("finished", 4000, "late")
    assert "condemned too late to be stopped, 2 checks in a row: worse on both signals at 800" in wild["verdict_reason"]
    assert [text for text in listener.said if "002-s42" in text] == [f"run 002-s42: {wild['verdict_reason']}"]
    # younger words on earlier checks are not the last ones: the calm run is the last to reach any check
    checks = [line["check"] for line in read_lines(tmp_path / "study/verdicts.jsonl") if line["run"] == "002-s42"]
    assert checks != sorted(checks)
    assert {run.name: run.verdict[0] for run in read_results(tmp_path / "study").runs}["002-s42"] == "late"
    # and another call does not stop it either
    assert go(path, FakeExecutor())["002-s42"]["state"] == "finished"


def test_a_check_that_was_passed_between_two_looks_still_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fake_runs.LINES", 80)  # 1,280 samples, three checks and more
    path = write_study(tmp_path, space=CALM_AND_WILD, early_termination={**TERMINATE, "early_samples": 2000})
    wild = go(path, FakeExecutor(room=1))["002-s42"]
    assert (wild["state"], wild["samples_seen"]) == ("stopped", 1280)


def line(run: str, check: int, state: str) -> dict[str, Any]:
    return {"run": run, "check": check, "state": state, "reason": f"{state} at {check}"}


def test_the_last_word_is_that_of_the_latest_check_or_the_one_that_condemned() -> None:
    lines = [line("a", 800, "keep"), line("a", 400, "suspect"), line("b", 800, "keep"), line("b", 400, "advise")]
    words = last_words([*lines, line("c", 400, "advise"), line("c", 400, "keep")])
    assert {run: (word.check, word.state) for run, word in words.items()} == {
        "a": (800, "keep"),
        "b": (400, "advise"),
        "c": (400, "keep"),
    }


def test_what_came_too_late_stays_late(tmp_path: Path) -> None:
    log = VerdictLog(tmp_path)
    assert len(log.add([Verdict("a", 400, "late", "why")])) == 1
    # the run went back to its checkpoint, and is at that check again
    assert log.add([Verdict("a", 400, "stop", "why")]) == []
    assert log.newest["a"].state == "late"
    log.close()


def watched(folder: Path, status: dict[str, Any] | None = None) -> Watched:
    (folder / "run").mkdir()
    if status is not None:
        (folder / "run/status.json").write_text(json.dumps(status))
    recipe = {"model_name_or_path": "m", "data": ["t.jsonl"], "output_dir": str(folder / "run"), "max_steps": 9}
    begun = Watched(Run("001-s1", 1, 1, {}, folder / "run"), recipe, "heldout_loss")
    begun.begin()
    return begun


# no handler is there while a training imports: it dies of the signal itself
@pytest.mark.parametrize("code", [-15, -2, 130, 143])
@pytest.mark.parametrize("before", [None, {"state": "stopped"}, {"state": "failed"}])
def test_who_dies_of_a_stop_did_not_fail(tmp_path: Path, code: int, before: dict[str, Any] | None) -> None:
    run = watched(tmp_path, before)
    run.end(code, "killed by SIGTERM", asked=True)
    assert (run.state, run.reason) == ("waiting", "")
    run.begin()
    run.state, run.reason = "stopping", "worse on both signals"
    run.end(code, "killed by SIGTERM", asked=False)
    assert (run.state, run.reason) == ("stopped", "worse on both signals")


@pytest.mark.parametrize(
    ("code", "asked", "after"), [(-15, False, "running"), (-9, True, "running"), (1, True, "failed")]
)
def test_other_deaths_are_failures(tmp_path: Path, code: int, asked: bool, after: str) -> None:
    run = watched(tmp_path, {"state": "stopped"})
    (tmp_path / "run/status.json").write_text(json.dumps({"state": after}))
    run.end(code, "its cause", asked)
    assert (run.state, run.reason) == ("failed", "its cause")


def test_a_continued_run_that_fails_before_it_begins_has_failed(tmp_path: Path) -> None:
    run = watched(tmp_path, {"state": "stopped"})
    run.end(2, "the model is gone", asked=False)
    assert (run.state, run.reason) == ("failed", "the model is gone")


def test_a_stop_that_a_training_dies_of_leaves_it_waiting(tmp_path: Path) -> None:
    path = write_study(tmp_path, space={"learning_rate": [1e-3]})

    class DiesOfIt(FakeExecutor):
        def _go_on(self, run: Run) -> Ended | None:
            (tmp_path / "study/stop.json").touch()  # while it starts
            if run.name not in self.stopped:
                return None
            del self.running[run.name]
            return Ended(-15, "killed by SIGTERM")

    with pytest.raises(StoppedByRequest):
        go(path, DiesOfIt())
    row = json.loads((tmp_path / "study/study.json").read_text())["runs"][0]
    assert (row["state"], row["reason"]) == ("waiting", "")


def test_a_database_that_fails_before_the_next_point_costs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowSecond(FakeExecutor):
        """The second run takes one look in four."""

        looks = 0

        def _go_on(self, run: Run) -> Ended | None:
            self.looks += run.name == "002-s42"
            waits = run.name == "002-s42" and run.name not in self.stopped and self.looks % 4
            return None if waits else super()._go_on(run)

    ask = scheduler.Database.ask

    def fail(self: scheduler.Database, point: int, draw: int) -> dict[str, Any]:
        if point > 2:
            raise OSError("gone")
        return ask(self, point, draw)

    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    path = write_study(tmp_path, space=space, num_trials=3, early_termination={"mode": "off"})
    executor = SlowSecond()
    with monkeypatch.context() as patch:
        patch.setattr(scheduler.Database, "ask", fail)
        with pytest.raises(SengiError, match=r"when it was asked for point 3 \(OSError\).*every run continues"):
            go(path, executor)
    assert executor.running == {}
    summary = json.loads((tmp_path / "study/study.json").read_text())
    assert summary["state"] == "stopped"
    assert [row["state"] for row in summary["runs"]] == ["finished", "waiting"]
    assert 0 < summary["runs"][1]["samples_seen"] < 4000
    assert json.loads((tmp_path / "study/runs/002-s42/status.json").read_text())["state"] == "stopped"
    assert {row["state"] for row in go(path, FakeExecutor()).values()} == {"finished"}


@pytest.mark.parametrize("chain", [False, True])
def test_a_stop_asked_while_the_study_starts_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: bool
) -> None:
    database = scheduler.Database

    def slow(file: StudyFile, folder: Path) -> scheduler.Database:
        (tmp_path / "study/stop.json").touch()
        return database(file, folder)

    stages = {"stages": {"rate": CALM_AND_WILD}, "space": {}}
    path = write_study(tmp_path, **(stages if chain else {"space": CALM_AND_WILD}))
    executor = FakeExecutor()
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "Database", slow)
        with pytest.raises(StoppedByRequest):
            (run_chain if chain else run_study)(read_study(path), make_executor=lambda asked: executor)
    assert executor.started == []
    # and one that an earlier session left is not
    (tmp_path / "study/stop.json").touch()
    (run_chain if chain else run_study)(read_study(path), make_executor=lambda asked: executor)
    assert executor.started == ["001-s42", "002-s42"]


def test_a_run_that_is_tried_again_is_not_called_failed(tmp_path: Path) -> None:
    path = write_study(tmp_path, space={"learning_rate": [1e-3]})
    assert go(path, FakeExecutor(broken=(1e-3,)))["001-s42"]["state"] == "failed"
    assert read_results(tmp_path / "study").runs[0].state == "failed"
    meanwhile: list[tuple[str, str]] = []

    class Watch(StudyObserver):
        def rows(self, rows: list[dict[str, Any]]) -> None:
            run = read_results(tmp_path / "study").runs[0]
            meanwhile.append((rows[0]["state"], run.state))

    assert go(path, FakeExecutor(), Watch())["001-s42"]["state"] == "finished"
    assert set(meanwhile) == {("running", "running"), ("finished", "finished")}


def test_the_table_and_the_report_say_why_a_run_waits(tmp_path: Path) -> None:
    path = write_study(tmp_path, space=CALM_AND_WILD)
    folder = tmp_path / "study/runs/001-s42"
    folder.mkdir(parents=True)
    held = lock(folder)
    held.__enter__()
    reported: list[str] = []

    class Release(Listener):
        def rows(self, rows: list[dict[str, Any]]) -> None:
            super().rows(rows)
            if rows[1]["state"] == "finished" and not reported:
                reported.append(read_results(tmp_path / "study").runs[0].reason)
                held.__exit__(None, None, None)

    listener = Release()
    rows = go(path, FakeExecutor(), listener)
    assert "is already working on this run" in listener.tables[0][0]["reason"]
    assert "is already working on this run" in reported[0]
    assert [text.partition(f" {folder}")[0] for text in listener.said] == ["run 001-s42 waits:"]
    assert (rows["001-s42"]["state"], rows["001-s42"]["reason"]) == ("finished", "")


def test_the_lease_of_another_machine_is_said_in_words_that_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "host": "elsewhere", "heartbeat": now}))
    run = Run("001-s1", 1, 1, {}, tmp_path)
    said = []
    for later in (1, 250, 301):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        said.append(holder(run))
    # a table that changes with every look would be written with every look
    assert said == [f"{tmp_path}: elsewhere trains it, or died less than 300 seconds ago"] * 2 + [""]
