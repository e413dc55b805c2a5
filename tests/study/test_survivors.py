"""Dead runs condemn nobody, and where the runs that were left have died, condemned ones go on."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sengi.storage import read_lines
from sengi.study.run_executor import Ended
from sengi.study.scheduler import run_study
from sengi.study.space import Run
from sengi.study.study_file import read_study
from sengi.study.survivors import to_continue
from sengi.study.verdicts import Word, last_words
from sengi.study.watched import Watched
from sengi.train.alarms import Alarm

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, Listener, write_study

TERMINATE = {"mode": "terminate", "check_samples": 400, "early_samples": 1200, "fair_share": 0.4}
CALM_AND_WILD = {"learning_rate": [1e-3, 8e-3]}
ALARM = Alarm(180, "diverging", "the loss is 9 and was 2", "the rate is too high", "lower it")


class Dies(FakeExecutor):
    """Runs of these names fail after 2,880 of 4,000 samples, or an alarm stops them."""

    def __init__(self, room: int, names: tuple[str, ...] = ("001-s42",), alarm: bool = False) -> None:
        super().__init__(room)
        self.names, self.alarm = names, alarm

    def _go_on(self, run: Run) -> Ended | None:
        log = run.folder / "dynamics.jsonl"
        if run.name not in self.names or not log.exists() or len(log.read_text().splitlines()) < 180:
            return super()._go_on(run)
        if not self.alarm:
            return self._end(run, 1, "disk full", "failed")
        ended = self._end(run, 3, "stopped by an alarm", "stopped")
        (run.folder / "status.json").write_text(json.dumps({"state": "stopped", "alarm": asdict(ALARM)}))
        return ended


def go(path: Path, executor: FakeExecutor, observer: Listener | None = None) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in run_study(read_study(path), observer, make_executor=lambda asked: executor)}


@pytest.mark.parametrize("alarm", [False, True])
def test_a_run_that_died_condemns_nobody(tmp_path: Path, alarm: bool) -> None:
    # one after another: the calm run is dead before the wild one begins
    path = write_study(tmp_path, space=CALM_AND_WILD, early_termination=TERMINATE)
    rows = go(path, Dies(1, alarm=alarm))
    assert rows["001-s42"]["state"] == ("stopped" if alarm else "failed")
    assert (rows["002-s42"]["state"], rows["002-s42"]["samples_seen"]) == ("finished", 4000)
    lines = [line for line in read_lines(tmp_path / "study/verdicts.jsonl") if line["run"] == "002-s42"]
    assert {line["reference"] for line in lines} == {"002-s42"}


@pytest.mark.parametrize("alarm", [False, True])
def test_a_condemned_run_goes_on_where_its_judge_died(tmp_path: Path, alarm: bool) -> None:
    path, listener = write_study(tmp_path, space=CALM_AND_WILD, early_termination=TERMINATE), Listener()
    executor = Dies(2, alarm=alarm)
    rows = go(path, executor, listener)
    assert executor.started == ["001-s42", "002-s42", "002-s42"]
    wild = rows["002-s42"]
    assert (wild["state"], wild["verdict"], wild["samples_seen"]) == ("finished", "continued", 4000)
    assert wild["score"] is not None
    assert wild["verdict_reason"].startswith(
        "continued from its checkpoint: 0 of the others finished or still can, and min_survivors is 1; it was stopped, "
        "2 checks in a row: worse on both signals at 800 samples"
    )
    assert f"run 002-s42: {wild['verdict_reason']}" in listener.said
    steps = [record["step"] for record in read_lines(tmp_path / "study/runs/002-s42/dynamics.jsonl")]
    assert steps == list(range(1, 251))
    # another call changes nothing about it, even while the run that failed is tried again beside it
    again = Dies(2)
    assert go(path, again)["002-s42"]["verdict"] == "continued"
    assert again.started == ([] if alarm else ["001-s42"])


def test_a_study_whose_last_run_died_is_mended_by_the_next_call(tmp_path: Path) -> None:
    # as an earlier version left it: the judge's run failed, the other is stopped
    path = write_study(tmp_path, space=CALM_AND_WILD, early_termination=TERMINATE)
    wild = tmp_path / "study/runs/002-s42"
    go(path, FakeExecutor())
    for name in ("status.json", "outcome.json"):
        (tmp_path / "study/runs/001-s42" / name).unlink()
    log = tmp_path / "study/runs/001-s42/dynamics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:180]))
    executor = Dies(1)
    assert json.loads((wild / "outcome.json").read_text())["state"] == "stopped"
    rows = go(path, executor)
    assert executor.started == ["001-s42", "002-s42"]
    assert {name: row["state"] for name, row in rows.items()} == {"001-s42": "failed", "002-s42": "finished"}


def test_a_run_that_was_continued_is_not_stopped_again_after_a_kill(tmp_path: Path) -> None:
    class Killed(BaseException):
        """What kill -9 does to a session, as far as files go."""

    class KilledWhenContinued(Dies):
        def start(self, run: Run) -> None:
            if run.name in self.started:
                raise Killed
            super().start(run)

    path = write_study(tmp_path, space=CALM_AND_WILD, early_termination=TERMINATE)
    with pytest.raises(Killed):
        go(path, KilledWhenContinued(2))
    # the calm run, tried again, does not fail this time, and would condemn the wild one a second time
    rows = go(path, FakeExecutor())
    assert {row["state"] for row in rows.values()} == {"finished"}
    # a session that died between the word and the deed left the outcome that the word took back
    outcome = {"state": "stopped", "reason": "stopped", "check": 800}
    (tmp_path / "study/runs/002-s42/outcome.json").write_text(json.dumps(outcome))
    assert go(path, FakeExecutor())["002-s42"]["state"] == "finished"


def test_the_least_bad_go_on_first_and_no_more_than_asked(tmp_path: Path) -> None:
    space = {"learning_rate": [8e-3, 1e-3, 2e-3, 4e-3]}
    path = write_study(tmp_path, space=space, early_termination={**TERMINATE, "min_survivors": 2})
    executor = Dies(4, ("002-s42",))
    rows = go(path, executor)
    # 001, 003 and 004 are worse than 002, and 003 is spared as one of the last two; when 002 dies, 004 is the next best
    assert rows["001-s42"]["state"] == "stopped"
    assert [rows[name]["state"] for name in ("003-s42", "004-s42")] == ["finished", "finished"]
    assert rows["004-s42"]["verdict"] == "continued"
    assert "1 of the others finished or still can, and min_survivors is 2" in rows["004-s42"]["verdict_reason"]


def stopped(folder: Path, name: str, check: int) -> Watched:
    (folder / name).mkdir()
    (folder / name / "outcome.json").write_text(json.dumps({"state": "stopped", "reason": "stopped", "check": check}))
    recipe = {"model_name_or_path": "m", "data": ["t.jsonl"], "output_dir": str(folder / name), "max_steps": 9}
    return Watched(Run(name, 1, 1, {}, folder / name), recipe, "heldout_loss")


def test_least_bad_is_who_was_condemned_last_then_who_was_least_beyond_chance(tmp_path: Path) -> None:
    runs = [stopped(tmp_path, "a", 800), stopped(tmp_path, "b", 1200), stopped(tmp_path, "c", 1200)]
    words = {"b": Word(1200, "stop", "", 3.0), "c": Word(1200, "stop", "", 2.0)}  # of a no word is left
    assert [verdict.run for verdict in to_continue(runs, words, 3)] == ["c", "b", "a"]
    assert [verdict.run for verdict in to_continue(runs, words, 2)] == ["c", "b"]
    # points that a search has not asked for yet can still finish
    assert to_continue(runs, words, 2, to_come=2) == []


def test_how_far_beyond_chance_a_run_was_is_read_from_its_weaker_signal() -> None:
    numbers = {"loss_gap": 0.03, "loss_margin": 0.01, "norm_gap": 0.2, "norm_margin": 0.1}
    line = {"run": "a", "check": 800, "state": "stop", "reason": "why"}
    assert last_words([line | numbers])["a"].excess == pytest.approx(2.0)
    assert last_words([line | dict.fromkeys(numbers)])["a"].excess == 0.0
