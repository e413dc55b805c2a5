"""The score of a run: of its own suite, after its last step; and what becomes of a run whose last evaluation failed."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from sengi.errors import InputError, StorageError
from sengi.evaluate.run_evaluations import write_evaluation, write_tasks
from sengi.evaluation import Evaluation
from sengi.study.recording import final_score, has_objective, objective_points
from sengi.study.results import read_items
from sengi.study.run_executor import Ended
from sengi.study.scheduler import run_study
from sengi.study.space import Run
from sengi.study.study_file import read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, write_heldout, write_study

OWN, OTHER = "0f" * 32, "00" * 32  # fingerprints; the other one sorts before
QUESTIONS = 4


def score_suite(run: Path, step: int, data: str, value: float, metric: str = "accuracy") -> None:
    """As training or ``sengi eval RUN`` writes a suite of one task."""
    row = {"task": "facts", "metric": metric, "group": "all", "value": value, "low": math.nan, "high": math.nan, "n": 4}
    items = [
        {"task": "facts", "metric": metric, "id": f"{data[:2]}-{n}", "correct": value, "question": f"{n}?"}
        for n in range(QUESTIONS)
    ]
    write_tasks(run, step, data, "model", step * 8, Evaluation(scores=[row], items=items))


def write_steps(run: Path, last: int) -> None:
    run.mkdir(exist_ok=True)
    line = {"samples_seen": last * 8, "loss": 1.0, "grad_norm": 1.0, "step_seconds": 1.0}
    (run / "dynamics.jsonl").write_text(json.dumps(line) + "\n")


@pytest.mark.parametrize("own_first", [True, False])
def test_another_suite_that_scores_a_run_replaces_nothing(tmp_path: Path, own_first: bool) -> None:
    write_steps(tmp_path, 2)
    score_suite(tmp_path, 0, OWN, 0.25)
    for data, value in ((OWN, 0.5), (OTHER, 0.75))[:: 1 if own_first else -1]:
        score_suite(tmp_path, 2, data, value)
    score_suite(tmp_path, 0, OTHER, 1.0)
    assert len(list((tmp_path / "evaluations").glob("step-*.json"))) == 4
    assert [point.value for point in objective_points(tmp_path, "facts/accuracy")] == [0.25, 0.5]
    end = final_score(tmp_path, "facts/accuracy")
    assert end.value == 0.5
    assert set(read_items(tmp_path, "facts/accuracy", end)) == {f"facts/0f-{n}" for n in range(QUESTIONS)}


def test_a_score_that_only_another_suite_has_is_none_of_the_run_s(tmp_path: Path) -> None:
    write_steps(tmp_path, 2)
    for step in (0, 2):
        score_suite(tmp_path, step, OWN, 0.5)
        score_suite(tmp_path, step, OTHER, 0.5, "f1")
    assert objective_points(tmp_path, "facts/f1") == []
    with pytest.raises(InputError, match="is no score of these runs, which have facts/accuracy; "):
        has_objective(tmp_path, "facts/f1", ["tasks"])
    with pytest.raises(StorageError, match="it scored facts/accuracy there"):
        final_score(tmp_path, "facts/f1")


def test_without_a_scored_base_the_first_suite_of_a_step_is_the_run_s(tmp_path: Path) -> None:
    score_suite(tmp_path, 2, OWN, 0.5)
    score_suite(tmp_path, 2, OTHER, 0.75)
    assert [point.value for point in objective_points(tmp_path, "facts/accuracy")] == [0.5]
    # questions and held-out data are of the recipe, whatever their fingerprint
    row = {"task": "own", "metric": "accuracy", "group": "all", "value": 0.5, "low": None, "high": None}
    write_evaluation(tmp_path, 2, "questions", {"samples_seen": 16, "data": "x", "scores": [row]}, [])
    assert len(objective_points(tmp_path, "own/accuracy")) == 1


def test_only_scores_of_the_last_step_are_named(tmp_path: Path) -> None:
    write_steps(tmp_path, 2)
    score_suite(tmp_path, 0, OWN, 0.5)
    with pytest.raises(StorageError, match="no score of 'facts/accuracy' after its last step; it scored nothing there"):
        final_score(tmp_path, "facts/accuracy")
    write_heldout(tmp_path, 2, 16, 2.0)
    with pytest.raises(StorageError, match="it scored heldout/loss there"):
        final_score(tmp_path, "facts/accuracy")


class Forgetful(FakeExecutor):
    """Its first training cannot make its last evaluation; what is done already is only scored by the next."""

    failing = True

    def _end(self, run: Run, code: int, cause: str, state: str) -> Ended:
        reason = "evaluation of step 250 failed: out of memory" if self.failing else ""
        ended = super()._end(run, code, cause, state)
        status = {"state": state, "reason": reason, "started": len(self.started)}
        (run.folder / "status.json").write_text(json.dumps(status))
        if self.failing:
            (run.folder / "evaluations/step-00000250-heldout.json").unlink()
        return ended


def test_a_run_whose_last_evaluation_failed_is_started_again_and_scored(tmp_path: Path) -> None:
    path = write_study(tmp_path, space={"learning_rate": [1e-3]})

    def go(executor: FakeExecutor) -> dict[str, Any]:
        return run_study(read_study(path), make_executor=lambda asked: executor)[0]

    executor = Forgetful()
    row = go(executor)
    assert (row["state"], executor.started) == ("failed", ["001-s42"])
    assert row["reason"].endswith("it scored nothing there; evaluation of step 250 failed: out of memory")
    executor.failing = False
    row = go(executor)
    assert executor.started == ["001-s42"] * 2
    assert (row["state"], row["samples_seen"]) == ("finished", 4000)
    assert row["score"] is not None
    # a score that came from elsewhere meanwhile, as by sengi eval RUN, ends it without a training
    (tmp_path / "study/runs/001-s42/outcome.json").unlink()
    assert go(executor) == row
    assert len(executor.started) == 2
