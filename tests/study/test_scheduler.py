"""The scheduler with runs that cost nothing: order, stops, failures, the database, and what another call finds."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from sengi.errors import InputError, StoppedByRequest
from sengi.storage import lock, read_lines
from sengi.study import scheduler
from sengi.study.judge import JudgeSettings, Verdict, judge
from sengi.study.scheduler import StudyObserver, run_study
from sengi.study.signals import History
from sengi.study.space import Run
from sengi.study.study_file import read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, Listener, write_study

TERMINATE = {"mode": "terminate", "check_samples": 400, "early_samples": 2000, "fair_share": 0.4}


def go(path: Path, executor: FakeExecutor | None = None, observer: StudyObserver | None = None) -> list[dict[str, Any]]:
    chosen = executor or FakeExecutor()
    return run_study(read_study(path), observer, make_executor=lambda asked: chosen)


def states(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["name"]: row["state"] for row in rows}


def trials(folder: Path) -> list[tuple[str, dict[str, Any], float | None]]:
    import optuna

    study = optuna.load_study(study_name="study", storage=f"sqlite:///{folder}/study.db")
    return [(t.state.name, t.params, t.value) for t in study.get_trials()]


def test_a_grid_runs_to_its_end_and_says_what_came_out(tmp_path: Path) -> None:
    executor = FakeExecutor()
    rows = go(write_study(tmp_path, seeds=[1, 2]), executor)
    assert executor.started == [f"{point:03}-s{seed}" for point in (1, 2, 3) for seed in (1, 2)]
    assert set(states(rows).values()) == {"finished"}
    summary = json.loads((tmp_path / "study/study.json").read_text())
    assert summary["runs"] == rows
    assert summary["state"] == "finished"
    first = rows[0]
    assert first["settings"] == {"learning_rate": 1e-4}
    assert first["interval"] == pytest.approx([first["score"] - 0.02, first["score"] + 0.02])
    assert (first["samples_seen"], first["seconds"]) == (4000, 125.0)
    # one trial a point, with the mean over its seeds
    scores = [row["score"] for row in rows]
    assert [(state, value) for state, _, value in trials(tmp_path / "study")] == [
        ("COMPLETE", pytest.approx((scores[n] + scores[n + 1]) / 2)) for n in (0, 2, 4)
    ]


def test_a_second_call_redoes_nothing(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    rows = go(path)
    executor = FakeExecutor()
    assert go(path, executor) == rows
    assert executor.started == []


def test_the_judge_stops_the_wild_run_and_the_record_says_why(tmp_path: Path) -> None:
    # rates far above the calm one learn faster and have larger norms
    path = write_study(tmp_path, space={"learning_rate": [1e-3, 2e-3, 8e-3]}, early_termination=TERMINATE)
    listener = Listener()
    executor = FakeExecutor(room=3)
    rows = go(path, executor, listener)
    assert states(rows) == {"001-s42": "finished", "002-s42": "stopped", "003-s42": "stopped"}
    stopped = rows[2]
    assert stopped["verdict"] == "stop"
    assert 800 <= stopped["samples_seen"] < 1600
    assert stopped["score"] is None
    assert "worse on both signals" in stopped["reason"]
    assert any("002-s42: stopped, 2 checks in a row" in text for text in listener.said)
    verdicts = read_lines(tmp_path / "study/verdicts.jsonl")
    assert [(v["check"], v["state"]) for v in verdicts if v["run"] == "003-s42"] == [(400, "suspect"), (800, "stop")]
    assert {state for state, _, _ in trials(tmp_path / "study")} == {"COMPLETE", "PRUNED"}
    # stopped stays stopped
    again = FakeExecutor()
    assert states(go(path, again)) == states(rows)
    assert again.started == []


@pytest.mark.parametrize("early", [{**TERMINATE, "mode": "advise"}, {**TERMINATE, "audit": 1.0}, {"mode": "off"}])
def test_advice_and_audit_stop_nobody(tmp_path: Path, early: dict[str, Any]) -> None:
    path = write_study(tmp_path, space={"learning_rate": [1e-3, 8e-3]}, early_termination=early)
    rows = go(path)
    assert set(states(rows).values()) == {"finished"}
    word = {"advise": "advise", "terminate": "audit", "off": None}[early["mode"]]
    assert rows[1]["verdict"] == word


def test_one_run_after_another_is_judged_by_those_before_it(tmp_path: Path) -> None:
    path = write_study(tmp_path, space={"learning_rate": [1e-3, 8e-3]}, early_termination=TERMINATE)
    assert states(go(path, FakeExecutor(room=1))) == {"001-s42": "finished", "002-s42": "stopped"}


def test_the_judge_is_asked_at_checks_and_not_at_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(histories: list[History], settings: JudgeSettings) -> list[Verdict]:
        asked.append(len(histories))
        return judge(histories, settings)

    monkeypatch.setattr(scheduler, "judge", counted)
    path = write_study(
        tmp_path, space={"learning_rate": [1e-3, 8e-3]}, early_termination={**TERMINATE, "mode": "advise"}
    )
    go(path)
    # 25 looks of 160 samples; five checks, and what begins and ends
    assert 5 <= len(asked) <= 9
    # and nothing is missed by it
    verdicts = read_lines(tmp_path / "study/verdicts.jsonl")
    assert [v["check"] for v in verdicts if v["run"] == "001-s42"] == [400, 800, 1200, 1600, 2000]
    assert [v["state"] for v in verdicts if v["run"] == "002-s42"] == ["suspect", "advise"]


def test_a_run_that_always_crashes_is_recorded_and_the_rest_go_on(tmp_path: Path) -> None:
    path = write_study(tmp_path, early_termination={"mode": "off"})
    listener = Listener()
    executor = FakeExecutor(broken=(1e-3,))
    rows = go(path, executor, listener)
    assert states(rows) == {"001-s42": "finished", "002-s42": "failed", "003-s42": "finished"}
    assert rows[1]["reason"] == "loss is nan"
    assert executor.started.count("002-s42") == 1
    assert listener.said == ["run 002-s42 failed: loss is nan"]
    # the next call tries it again, and only it; the index follows
    mended = FakeExecutor()
    assert set(states(go(path, mended)).values()) == {"finished"}
    assert mended.started == ["002-s42"]
    found = trials(tmp_path / "study")
    assert sorted(state for state, _, _ in found) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]


def test_the_seed_that_survived_teaches_the_sampler_nothing(tmp_path: Path) -> None:
    class LosesOne(FakeExecutor):
        def start(self, run: Run) -> None:
            self.broken = (1e-3,) if run.name == "002-s2" else ()
            super().start(run)

    path = write_study(tmp_path, seeds=[1, 2], early_termination={"mode": "off"})
    rows = go(path, LosesOne(room=1))
    assert [row["state"] for row in rows] == ["finished"] * 3 + ["failed"] + ["finished"] * 2
    assert [state for state, _, _ in trials(tmp_path / "study")] == ["COMPLETE", "FAIL", "COMPLETE"]
    go(path)
    assert [state for state, _, _ in trials(tmp_path / "study")] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_run_without_the_score_says_what_it_scored(tmp_path: Path) -> None:
    recipe = {
        "model_name_or_path": "m",
        "data": ["t.jsonl"],
        "eval_questions": ["q.jsonl"],
        "effective_batch_size": 16,
    }
    rows = go(write_study(tmp_path, recipe=recipe, objective="taught/acc", space={"learning_rate": [1e-3]}))
    assert rows[0]["state"] == "failed"
    assert "no score of 'taught/acc' after its last step; it scored heldout/loss" in rows[0]["reason"]


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (
            "taught/acc",
            "objective 'taught/acc' is no score of these runs, which have taught/accuracy; did you mean "
            "'taught/accuracy'?",
        ),
        (
            "taught/accuracy",  # by its name more would be better
            "objective 'taught/accuracy': its task says that lower is better, and the study would look for the higher",
        ),
    ],
)
def test_an_objective_that_cannot_be_ends_the_study_before_a_run_is_trained_to_its_end(
    tmp_path: Path, objective: str, words: str
) -> None:
    class Scored(FakeExecutor):
        def start(self, run: Run) -> None:
            super().start(run)
            row = {"task": "taught", "metric": "accuracy", "group": "all", "value": 0.5, "low": 0.4, "high": 0.6}
            (run.folder / "evaluations").mkdir()
            file = run.folder / "evaluations/step-00000000-questions.json"
            scores = [{**row, "n": 9, "higher_is_better": False}]
            file.write_text(json.dumps({"step": 0, "samples_seen": 0, "scores": scores}))

    recipe = {"model_name_or_path": "m", "data": ["t.jsonl"], "eval_questions": ["q.jsonl"], "effective_batch_size": 16}
    with pytest.raises(InputError, match=re.escape(words)):
        go(write_study(tmp_path, recipe=recipe, objective=objective), Scored())
    assert not (tmp_path / "study/runs/001-s42/dynamics.jsonl").exists()


def test_a_lost_or_broken_database_is_made_again_from_the_folders(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    rows = go(path)
    before = trials(tmp_path / "study")
    (tmp_path / "study/study.db").unlink()
    executor = FakeExecutor()
    assert go(path, executor) == rows
    assert trials(tmp_path / "study") == before
    (tmp_path / "study/study.db").write_bytes(b"not a database at all" * 500)
    assert go(path, executor) == rows
    assert trials(tmp_path / "study") == before
    assert executor.started == []
    assert len(list((tmp_path / "study").glob(".quarantine-study.db-*"))) == 1


def test_an_unreachable_database_is_an_error_before_any_run(tmp_path: Path) -> None:
    path = write_study(tmp_path, storage="postgresql://nobody@127.0.0.1:1/none")
    executor = FakeExecutor()
    with pytest.raises(InputError, match=r"storage: the database .* cannot be used \(.*\); check its address"):
        go(path, executor)
    assert executor.started == []


def test_a_database_that_fails_on_the_way_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, point: int, result: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(scheduler.Database, "tell", fail)
    listener = Listener()
    path = write_study(tmp_path, early_termination={"mode": "off"})
    assert set(states(go(path, observer=listener)).values()) == {"finished"}
    assert {text.partition(";")[0] for text in listener.said} == {"the database failed (OSError)"}
    monkeypatch.undo()
    go(path)
    assert {state for state, _, _ in trials(tmp_path / "study")} == {"COMPLETE"}


def test_two_studies_in_one_folder_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    rows = go(write_study(tmp_path))
    before = (tmp_path / "study/request.json").read_bytes()
    other = write_study(tmp_path, space={"learning_rate": [1e-4, 5e-4]}, budget_samples=2000)
    with pytest.raises(InputError, match=r"holds another study \(space, budget_samples differ"):
        go(other)
    assert (tmp_path / "study/request.json").read_bytes() == before
    # what decides no run may change
    assert go(write_study(tmp_path, early_termination={"mode": "terminate"})) == rows


def test_a_folder_at_work_or_of_a_single_run_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    (tmp_path / "study").mkdir()
    with lock(tmp_path / "study"), pytest.raises(InputError, match=r"process \d+ is already working"):
        go(path)
    (tmp_path / "study/dynamics.jsonl").touch()
    with pytest.raises(InputError, match="holds a single run, not a study"):
        go(path)


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    folder = tmp_path / "study/runs/001-s42"
    folder.mkdir(parents=True)
    executor = FakeExecutor(room=1)

    class Release(StudyObserver):
        def rows(self, rows: list[dict[str, Any]]) -> None:
            if states(rows)["003-s42"] == "finished" and not held.closed:
                held.close()

    class Held:
        closed = False

        def __enter__(self) -> None:
            self.lock = lock(folder)
            self.lock.__enter__()

        def close(self) -> None:
            self.closed = True
            self.lock.__exit__(None, None, None)

    held = Held()
    held.__enter__()
    rows = go(path, executor, Release())
    assert executor.started == ["002-s42", "003-s42", "001-s42"]
    assert set(states(rows).values()) == {"finished"}


def test_a_stop_request_saves_all_runs_and_the_next_call_continues_them(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    asked = tmp_path / "study/stop.json"

    class Stop(StudyObserver):
        def rows(self, rows: list[dict[str, Any]]) -> None:
            if rows[0]["samples_seen"] > 400 and rows[0]["state"] == "running":
                asked.write_text("{}")

    executor = FakeExecutor()
    with pytest.raises(StoppedByRequest, match="study stopped by 'sengi study stop', every run saved its state"):
        go(path, executor, Stop())
    assert not asked.exists()
    summary = json.loads((tmp_path / "study/study.json").read_text())
    assert (summary["state"], {row["state"] for row in summary["runs"]}) == ("stopped", {"waiting"})
    half = summary["runs"][0]["samples_seen"]
    again = FakeExecutor()
    rows = go(path, again)
    assert again.started == ["001-s42", "002-s42", "003-s42"]
    assert 400 < half < rows[0]["samples_seen"] == 4000
    steps = [record["step"] for record in read_lines(tmp_path / "study/runs/001-s42/dynamics.jsonl")]
    assert steps == list(range(1, 251))


def test_ranges_are_searched_by_optuna_and_a_lost_index_changes_no_run(tmp_path: Path) -> None:
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "effective_batch_size": {"low": 8, "high": 64}}
    path = write_study(tmp_path, space=space, num_trials=5)
    rows = go(path, FakeExecutor(room=1))
    assert [row["name"] for row in rows] == [f"{n:03}-s42" for n in range(1, 6)]
    for row in rows:
        assert 1e-4 <= row["settings"]["learning_rate"] <= 1e-2
        assert isinstance(row["settings"]["effective_batch_size"], int)
    assert len({row["settings"]["learning_rate"] for row in rows}) == 5
    (tmp_path / "study/study.db").unlink()
    more = write_study(tmp_path, space=space, num_trials=7)
    longer = go(more, FakeExecutor(room=1))
    assert longer[:5] == rows
    assert len(longer) == 7
