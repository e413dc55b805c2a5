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

    def log(numbers: dict[str, Any], step: int) -> None:
        if step == 4:
            raise ConnectionError("no network")
        calls.append(("log", numbers, step))

    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(("init", options))  # type: ignore[attr-defined]
    module.log = log  # type: ignore[attr-defined]
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
