"""A tracker gets the numbers of every step, and its failures never reach the run."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from sengi.recipe import Recipe
from sengi.report.trackers import Tracker

RECIPE = Recipe(model_name_or_path="m", data=[{"path": "d.jsonl"}], output_dir="runs/one", report_to=["wandb"])


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A module of wandb's shape that notes its calls; the fourth log fails."""
    calls: list[tuple[Any, ...]] = []

    def log(numbers: dict[str, Any], step: int | None = None) -> None:
        if step == 4:
            raise ConnectionError("no network")
        calls.append(("log", numbers, step))

    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(("init", options))  # type: ignore[attr-defined]
    module.log = log  # type: ignore[attr-defined]
    module.define_metric = lambda key, step_metric: calls.append(("axis", key, step_metric))  # type: ignore[attr-defined]
    module.finish = lambda: calls.append(("finish",))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_numbers_are_passed_on_with_their_step(wandb: list[tuple[Any, ...]]) -> None:
    tracker = Tracker("wandb", RECIPE)
    assert tracker.log({"step": 1, "loss": 2.5, "phase": "stacked", "mfu": None}) is None
    assert tracker.finish() is None
    init, log, finish = wandb
    # the run is named by its folder and carries the recipe; text and missing values are not metrics
    assert init[1]["name"] == "one"
    assert init[1]["config"]["effective_batch_size"] == 3840
    assert log == ("log", {"loss": 2.5}, 1)
    assert finish == ("finish",)


# A second process scores step 2 while training is at step 5; wandb would drop what is logged for an earlier step.
def test_scores_of_an_earlier_step_have_an_axis_of_their_own(wandb: list[tuple[Any, ...]]) -> None:
    tracker = Tracker("wandb", RECIPE)
    assert tracker.log({"step": 5, "loss": 2.5}) is None
    assert tracker.evaluated(2, 128, {"mmlu/acc/all": 0.25}) is None
    assert tracker.evaluated(4, 256, {"mmlu/acc/all": 0.5}) is None
    calls = wandb[2:]
    assert sorted(call for call in calls if call[0] == "axis") == [
        ("axis", "evaluated/samples_seen", "evaluated/step"),
        ("axis", "mmlu/acc/all", "evaluated/step"),
    ]
    assert [call for call in calls if call[0] == "log"] == [
        ("log", {"mmlu/acc/all": value, "evaluated/samples_seen": seen, "evaluated/step": step}, None)
        for step, seen, value in ((2, 128, 0.25), (4, 256, 0.5))
    ]


def test_other_trackers_take_scores_at_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    module = types.ModuleType("trackio")
    module.init = lambda **options: None  # type: ignore[attr-defined]
    module.log = lambda numbers, step: calls.append((numbers, step))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    assert Tracker("trackio", RECIPE).evaluated(2, 128, {"mmlu/acc/all": 0.25}) is None
    assert calls == [({"mmlu/acc/all": 0.25, "evaluated/samples_seen": 128}, 2)]


def test_a_failure_is_told_once_and_ends_the_tracker_only(wandb: list[tuple[Any, ...]]) -> None:
    tracker = Tracker("wandb", RECIPE)
    told = [tracker.log({"step": step, "loss": 1.0}) for step in (3, 4, 5)]
    assert told[0] is None
    assert told[2] is None
    assert "report_to wandb is off from here: ConnectionError: no network" in str(told[1])
    assert [call[0] for call in wandb] == ["init", "log"]


def test_a_missing_package_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert "pip install trackio" in str(Tracker("trackio", RECIPE).log({"step": 1, "loss": 1.0}))
