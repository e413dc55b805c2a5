"""What a study folder says when it is read: states, scores, single results, whatever happened to it."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sengi.errors import InputError
from sengi.evaluate import run_evaluations
from sengi.storage import lock
from sengi.study.lease import EXPIRES
from sengi.study.recording import Point
from sengi.study.results import is_study, read_items, read_results

sys.path.append(str(Path(__file__).parent))
from fake_study import BUDGET, QUESTIONS, verdict, write_evaluation, write_study_folder


def test_a_finished_study_is_read_whole(tmp_path: Path) -> None:
    results = read_results(write_study_folder(tmp_path / "study", verdicts=[verdict("001-s1", 512, "keep")]))
    assert len(results.runs) == len(results.scored) == 12
    assert results.keys == ("effective_batch_size", "learning_rate")
    run = results.runs[0]
    assert (run.name, run.settings) == ("001-s1", {"effective_batch_size": 8, "learning_rate": 1e-4})
    assert run.samples_seen == BUDGET
    assert run.tokens == 50 * BUDGET
    assert (run.devices, run.device) == (2, "core")
    assert run.verdict[0] == "keep"
    assert len(run.items) == QUESTIONS
    assert run.score is not None
    mean = np.average([v for v, _ in run.items.values()], weights=[w for _, w in run.items.values()])
    assert mean == pytest.approx(run.score.value)
    assert [point.samples_seen for point in run.evaluations] == [0, BUDGET // 2, BUDGET]
    assert len(results.recordings()) == 12


def test_every_state_is_told_from_the_folders(tmp_path: Path) -> None:
    states = {"001-s1": "failed", "001-s2": "stopped", "002-s1": "running", "002-s2": "waiting", "003-s1": "paused"}
    folder = write_study_folder(tmp_path / "study", states=states, state="running")
    with lock(folder):
        results = read_results(folder)
    told = {run.name: run.state for run in results.runs}
    assert told["001-s1"] == "failed"
    assert told["001-s2"] == "stopped"
    assert told["002-s1"] == "running"
    assert told["002-s2"] == "waiting"
    assert told["003-s1"] == "unfinished"
    assert told["004-s1"] == "finished"
    assert {run.name: run.reason for run in results.runs}["001-s1"] == "loss is nan"
    assert all(run.score is None for run in results.runs if run.name in states)


@pytest.mark.parametrize(
    ("host", "age", "state"),
    [("elsewhere", 10, "running"), ("elsewhere", EXPIRES + 1, "unfinished"), (socket.gethostname(), 10, "unfinished")],
)
def test_a_run_of_a_killed_study_is_not_called_running(tmp_path: Path, host: str, age: float, state: str) -> None:
    # on this machine the trainings die with the study, and nobody holds its lock; another machine's is known by its
    # heartbeat
    folder = write_study_folder(tmp_path / "study", states={"001-s1": "running"}, state="running")
    status = {"state": "running", "host": host, "heartbeat": time.time() - age}
    (folder / "runs/001-s1/status.json").write_text(json.dumps(status))
    assert read_results(folder).runs[0].state == state
    with lock(folder):
        assert read_results(folder).runs[0].state == "running"


def test_a_finished_run_without_its_score_says_so(tmp_path: Path) -> None:
    folder = write_study_folder(tmp_path / "study", seeds=(1,))
    for path in (folder / "runs/001-s1/evaluations").glob(f"step-{BUDGET // 8:08d}*"):
        path.unlink()
    run = read_results(folder).runs[0]
    assert run.score is None
    assert "no score of 'heldout_loss' after its last step" in run.reason


def test_single_results_are_taken_only_where_they_add_up_to_the_score(tmp_path: Path) -> None:
    (tmp_path / "evaluations").mkdir()
    write_evaluation(tmp_path, 5, 40, 2.0, "heldout_loss")
    assert len(read_items(tmp_path, "heldout_loss", Point(40, 2.0, 1.9, 2.1))) == QUESTIONS
    assert read_items(tmp_path, "heldout_loss", Point(40, 2.1, 1.9, 2.1)) == {}
    assert read_items(tmp_path, "heldout_loss", Point(80, 2.0, 1.9, 2.1)) == {}


def test_a_score_without_its_filters_name_is_found(tmp_path: Path) -> None:
    # Tables name a filter only where a task has several; MMLU-Pro has one, and it is not lm-eval's "none".
    item = {"task": "pro", "metric": "exact_match", "filter": "custom-extract"}
    items = [{**item, "id": str(n), "correct": n % 2, "question": f"{n}?"} for n in range(4)]
    run_evaluations.write_evaluation(tmp_path, 4, "tasks", {"samples_seen": 64}, items)
    assert len(read_items(tmp_path, "pro/exact_match", Point(64, 0.5, 0.4, 0.6))) == 4


@pytest.mark.parametrize("by_task", [False, True])
def test_the_questions_of_a_group_of_tasks_weigh_as_its_score_says(tmp_path: Path, by_task: bool) -> None:
    folder = tmp_path / "evaluations"
    folder.mkdir()
    right = {"one": [1, 0], "two": [1, 1, 1, 0, 1, 1]}
    items = [
        {"task": task, "id": str(n), "metric": "acc", "correct": float(v), "question": f"{task} {n}"}
        for task, values in right.items()
        for n, v in enumerate(values)
    ]
    score = (1 / 2 + 5 / 6) / 2 if by_task else 6 / 8
    (folder / "step-00000004-tasks.items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    facts = {"samples_seen": 64, "scores": [], "groups": {"both": {"acc": score}}, "group_subtasks": {"both": [*right]}}
    (folder / "step-00000004-tasks.json").write_text(json.dumps(facts))
    found = read_items(tmp_path, "both/acc", Point(64, score, score, score))
    assert len(found) == 8
    assert found["one/0"][0] == 1.0
    assert (found["one/0"][1] > found["two/0"][1]) is by_task


def test_searched_points_are_those_that_were_begun(tmp_path: Path) -> None:
    folder = write_study_folder(tmp_path / "study", {"learning_rate": {"low": 1e-4, "high": 1e-2}}, seeds=(1,))
    results = read_results(folder)
    assert results.searched
    assert [run.settings["learning_rate"] for run in results.runs] == [1e-4, 1e-2, pytest.approx(0.00505)]


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    folder = write_study_folder(tmp_path / "study", seeds=(1,))
    assert is_study(folder)
    assert not is_study(folder / "runs/001-s1")  # it has a request, too: a recipe
    assert not is_study(tmp_path / "nothing")
    with pytest.raises(InputError, match="no study folder"):
        read_results(folder / "runs/001-s1")
