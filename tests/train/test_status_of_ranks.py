"""status.json: who writes it, and whose word stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sengi.train import run_folder
from sengi.train.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "FIRST_WORD", 0.0)


def told(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "status.json").read_text()))


# Rule: a rank that lost rank 0 says so, and keeps what rank 0 knew.
def test_the_last_word_of_another_rank_keeps_what_was_known(tmp_path: Path) -> None:
    keeper, other = RunFolder(tmp_path), RunFolder(tmp_path)
    keeper.status(step=7, world_size=2, max_steps=9)
    other.last_word(state="failed", reason="rank 0 died")
    found = told(tmp_path)
    assert (found["state"], found["reason"]) == ("failed", "rank 0 died")
    assert (found["step"], found["world_size"], found["max_steps"]) == (7, 2, 9)


# Rule: where a cut cable makes each rank miss the other, what rank 0 said first stays.
def test_a_cause_that_was_told_is_not_replaced(tmp_path: Path) -> None:
    keeper, other = RunFolder(tmp_path), RunFolder(tmp_path)
    keeper.status(state="failed", reason="rank 1 gave no sign of life", world_size=2)
    other.last_word(state="failed", reason="rank 0 gave no sign of life")
    assert told(tmp_path)["reason"] == "rank 1 gave no sign of life"


# Rule: a cause of an earlier start of the run is no cause of this one; nor is none at all.
def test_an_earlier_cause_is_replaced(tmp_path: Path) -> None:
    other = RunFolder(tmp_path)
    other.last_word(state="failed", reason="first")
    assert (told(tmp_path)["reason"], told(tmp_path)["state"]) == ("first", "failed")
    later = RunFolder(tmp_path)
    later.last_word(state="failed", reason="second")
    assert told(tmp_path)["reason"] == "second"
