"""Settings that make no recipe together, though each one does alone: found before a grid, drawn anew in a search."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sengi.errors import InputError, RecipeError
from sengi.study import scheduler
from sengi.study.scheduler import run_study
from sengi.study.study_file import StudyRequest, read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, Listener, write_study

SEARCH: dict[str, Any] = {
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "weight_decay": {"low": 0.0, "high": 0.5}},
    "num_trials": 6,
    "budget_samples": 480,
    "early_termination": {"mode": "off"},
}


def go(path: Path, executor: FakeExecutor, listener: Listener | None = None) -> list[dict[str, Any]]:
    return run_study(read_study(path), listener, make_executor=lambda asked: executor)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A recipe that takes no large weight decay with a low rate, whatever a check of values one by one says."""
    refused: list[dict[str, Any]] = []
    make = StudyRequest.run_values

    def values(self: StudyRequest, settings: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
        if settings["weight_decay"] > 0.25 and 1e-4 < settings["learning_rate"] < 1e-3:
            refused.append(settings)
            raise RecipeError("weight_decay does not go with this rate; lower it")
        return make(self, settings, seed, folder)

    monkeypatch.setattr(StudyRequest, "run_values", values)
    return refused


def test_every_point_of_a_grid_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    space = {"use_peft": [True, False], "lora_r": [32, 64]}
    with pytest.raises(RecipeError, match="the run with use_peft False, lora_r 64"):
        read_study(write_study(tmp_path, space=space))
    path = write_study(tmp_path, stages={"one": space})
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "space"}))
    with pytest.raises(RecipeError, match="the run with use_peft False, lora_r 64"):
        read_study(path)
    assert not (tmp_path / "study").exists()


def test_a_study_that_cannot_begin_leaves_its_folder_to_a_corrected_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: scheduler.Scheduler, point: int, settings: dict[str, Any]) -> None:
        raise RecipeError("not together")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.Scheduler, "_add_point", fail)
        with pytest.raises(RecipeError, match="not together"):
            go(write_study(tmp_path), FakeExecutor())
    rows = go(write_study(tmp_path, space={"learning_rate": [1e-3]}), FakeExecutor())
    assert [row["state"] for row in rows] == ["finished"]


def test_a_search_draws_anew_and_goes_on_the_same_after_any_stop(
    tmp_path: Path, refusing: list[dict[str, Any]]
) -> None:
    listener = Listener()
    path = write_study(tmp_path, **SEARCH)
    rows = go(path, FakeExecutor(room=1), listener)
    assert refusing
    assert [(row["name"], row["state"]) for row in rows] == [(f"{n:03}-s42", "finished") for n in range(1, 7)]
    assert not [row for row in rows if row["settings"] in refusing]
    assert any("refused last: weight_decay does not go with this rate" in text for text in listener.said)
    again = FakeExecutor(room=1)
    assert go(path, again) == rows
    (tmp_path / "study/study.db").unlink()
    assert go(path, again) == rows
    assert again.started == []


def test_a_search_without_a_valid_point_saves_its_runs_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, executor, make = write_study(tmp_path, **SEARCH), FakeExecutor(), StudyRequest.run_values
    valid: list[dict[str, Any]] = []

    def values(self: StudyRequest, settings: dict[str, Any], seed: int, folder: Path) -> dict[str, Any]:
        if valid and settings not in valid and executor.started:
            raise RecipeError("not together")
        valid.append(settings)
        return make(self, settings, seed, folder)

    with monkeypatch.context() as patch:
        request = read_study(path)
        patch.setattr(StudyRequest, "run_values", values)
        with pytest.raises(
            RecipeError, match=r"none of 50 draws for point 2 makes a valid recipe.* not together; begin"
        ):
            run_study(request, make_executor=lambda asked: executor)
    # the run that was at work saved its state, and goes on where it was
    assert executor.running == {}
    status = json.loads((tmp_path / "study/runs/001-s42/status.json").read_text())
    assert status["state"] == "stopped"
    assert json.loads((tmp_path / "study/study.json").read_text())["state"] == "stopped"
    assert {row["state"] for row in go(path, FakeExecutor())} == {"finished"}


def test_runs_are_saved_whatever_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(folder: Path, objective: str, kinds: list[str]) -> bool:
        if (folder / "dynamics.jsonl").exists():
            raise InputError("the objective is no score of these runs")
        return False

    monkeypatch.setattr("sengi.study.watched.has_objective", late)
    executor = FakeExecutor()
    with pytest.raises(InputError, match="is no score"):
        go(write_study(tmp_path), executor)
    assert len(executor.started) == 2
    assert executor.running == {}
