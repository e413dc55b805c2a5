"""Runs without training: an executor that writes what a training would, a few steps at every look."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sengi.study.run_executor import Ended
from sengi.study.scheduler import StudyObserver
from sengi.study.space import Run

LINES = 10  # steps a run takes between two looks
Curve = Callable[[dict[str, Any], int], tuple[float, float]]  # (recipe, samples) -> loss, gradient norm


def curve(recipe: dict[str, Any], samples: int) -> tuple[float, float]:
    """A higher rate learns faster and has the larger norm."""
    rate = recipe["learning_rate"] / 1e-3
    return 3 - rate**0.3 * (1 - np.exp(-samples / 800)), float(rate**0.5)


class Listener(StudyObserver):
    """Keeps what a study tells: sentences, and its table each time."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.tables: list[list[dict[str, Any]]] = []

    def message(self, text: str) -> None:
        self.said.append(text)

    def rows(self, rows: list[dict[str, Any]]) -> None:
        self.tables.append(rows)


class FakeExecutor:
    """Writes run folders; a run whose rate is in ``broken`` fails halfway.

    Attributes:
        started: names of runs, in the order they were started.
        stopped: names of runs that were asked to stop.
    """

    def __init__(self, room: int = 2, broken: tuple[float, ...] = (), curve: Curve = curve) -> None:
        self.room, self.broken, self.curve = room, broken, curve
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.running: dict[str, Run] = {}

    @property
    def free(self) -> int:
        return self.room - len(self.running)

    def start(self, run: Run) -> None:
        self.started.append(run.name)
        self.running[run.name] = run

    def stop(self, run: Run) -> None:
        if run.name in self.running and run.name not in self.stopped:
            self.stopped.append(run.name)

    def ended(self) -> dict[str, Ended]:
        return {name: ended for name, run in list(self.running.items()) if (ended := self._go_on(run)) is not None}

    def _go_on(self, run: Run) -> Ended | None:
        recipe = json.loads(run.request.read_text())
        log = run.folder / "dynamics.jsonl"
        done = len(log.read_text().splitlines()) if log.exists() else 0
        if run.name in self.stopped:
            self.stopped.remove(run.name)
            return self._end(run, 3, "stopped by SIGTERM", "stopped")
        if recipe["learning_rate"] in self.broken and done >= LINES:
            return self._end(run, 1, "loss is nan", "failed")
        batch, steps = recipe["effective_batch_size"], recipe["max_steps"]
        with log.open("a") as file:
            for step in range(done + 1, min(done + LINES, steps) + 1):
                loss, norm = self.curve(recipe, step * batch)
                record = {
                    "step": step,
                    "samples_seen": step * batch,
                    "loss": loss,
                    "grad_norm": norm,
                    "step_seconds": 0.5,
                }
                file.write(json.dumps(record) + "\n")
        if done + LINES < steps:
            return None
        write_heldout(run.folder, steps, steps * batch, self.curve(recipe, steps * batch)[0])
        return self._end(run, 0, "", "finished")

    def _end(self, run: Run, code: int, cause: str, state: str) -> Ended:
        (run.folder / "status.json").write_text(json.dumps({"state": state, "reason": cause}))
        del self.running[run.name]
        return Ended(code, cause)


def write_heldout(folder: Path, step: int, samples: int, value: float) -> None:
    """An evaluation of held-out loss."""
    (folder / "evaluations").mkdir(exist_ok=True)
    row = {
        "task": "heldout",
        "metric": "loss",
        "group": "all",
        "value": value,
        "low": value - 0.02,
        "high": value + 0.02,
    }
    content = {"step": step, "samples_seen": samples, "scores": [{**row, "n": 50}]}
    (folder / f"evaluations/step-{step:08d}-heldout.json").write_text(json.dumps(content))


def write_study(folder: Path, **more: Any) -> Path:
    """A study file of three rates; its recipe names data that nobody reads."""
    values: dict[str, Any] = {
        "recipe": {
            "model_name_or_path": "model",
            "data": ["train.jsonl"],
            "eval_data": ["heldout.jsonl"],
            "effective_batch_size": 16,
        },
        "output_dir": str(folder / "study"),
        "space": {"learning_rate": [1e-4, 1e-3, 1e-2]},
        "budget_samples": 4000,
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(values | more))
    return path
