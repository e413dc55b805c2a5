"""A run of two phases: its sizes, what it leaves, and ways to break it off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.train.crash_harness import dynamics
from tests.train.told import state

from sengi.train import evaluation, handover
from sengi.train.loop import Loop

FACTS, SKILLS = 12, 8  # samples
BORDER, LAST = 6, 10  # batch 2, one epoch: six steps of facts, four of skills
LOSSES = [9.0, 3.0, 2.0, 2.5, 2.4, 2.2, 2.1]  # pretended at steps 0, 2, 4, 6, 8, 10: step 4 is the best of facts
Recipe = Callable[..., dict[str, Any]]
MOMENTS = [
    "inside",
    "before the border is scored",
    "before the choice is written",
    "after the choice is written",
    "before the first step",
    "before the first checkpoint",
]


def records(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "phases.json").read_text())["phases"])


def result(run: Path, last: int = LAST) -> tuple[Any, ...]:
    """All that an interruption must not change."""
    return dynamics(run), state(run / f"checkpoint-{last}"), (run / "phases.json").read_bytes()


class Broken(BaseException):
    """An end without any clean-up, as a kill in this process."""


def break_at(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """End the run at a moment around its border."""

    def broken(*_: Any, **__: Any) -> None:
        raise Broken

    if moment == "before the border is scored":
        heldout = evaluation.Evaluations.heldout

        def score(self: Any, step: int, *rest: Any) -> None:
            broken() if step == BORDER else heldout(self, step, *rest)

        monkeypatch.setattr(evaluation.Evaluations, "heldout", score)
    elif moment == "before the choice is written":
        monkeypatch.setattr(handover.Handover, "_write", broken)
    elif moment == "after the choice is written":
        write = handover.Handover._write

        def write_and_break(self: Any, done: list[Any]) -> None:
            write(self, done)
            broken()

        monkeypatch.setattr(handover.Handover, "_write", write_and_break)
    else:
        at = {"before the first step": BORDER + 1, "before the first checkpoint": BORDER + 2, "inside": 4}[moment]
        step = Loop._train_step

        def train_step(loop: Loop, number: int) -> None:
            broken() if number == at else step(loop, number)

        monkeypatch.setattr(Loop, "_train_step", train_step)


def break_at_step(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    step = Loop._train_step

    def train_step(loop: Loop, number: int) -> None:
        if number == at:
            loop.saver.finish()
            raise Broken
        step(loop, number)

    monkeypatch.setattr(Loop, "_train_step", train_step)
