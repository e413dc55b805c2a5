"""Trackers (``report_to``): they are told what dynamics.jsonl says, and can never stop a run.

wandb and trackio share one shape (init, log, finish); TensorBoard writes event files into the run folder. A
tracker that fails says so once and is left alone from then on; the run folder has everything in any case.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from sengi.recipe import Recipe


class Tracker:
    """One tracker of one run.

    Args:
        name: ``wandb``, ``trackio`` or ``tensorboard``.
        recipe: its values become the tracker's config, its output_dir the run's name.
    """

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.name, self.recipe = name, recipe
        self._module: Any = None
        self._writer: Any = None
        self._dead = False
        self._with_axis: set[str] = set()

    def log(self, record: dict[str, Any]) -> str | None:
        """Pass on the numbers of a record at its ``step``; returns a sentence the first time this fails."""
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}
        return self._safely(lambda: self._log(int(record["step"]), numbers))

    def evaluated(self, step: int, samples_seen: int, numbers: dict[str, float]) -> str | None:
        """Pass on the scores of a step, which may be behind the last one logged; returns a sentence as :meth:`log`.

        wandb drops what comes for an earlier step: scores get an x axis of their own there (``evaluated/step``).
        """
        return self._safely(lambda: self._log_scores(step, {**numbers, "evaluated/samples_seen": samples_seen}))

    def finish(self) -> str | None:
        """Close the tracker; returns a sentence if that fails."""
        return self._safely(self._finish)

    def _safely(self, work: Any) -> str | None:
        if self._dead:
            return None
        try:
            work()
        except Exception as error:  # whatever a tracker raises must not reach the run
            self._dead = True
            text = " ".join(str(error).split())[:200]
            cure = f"; pip install {self.name}" if isinstance(error, ImportError) else ""
            return f"report_to {self.name} is off from here: {type(error).__name__}: {text}{cure}; training goes on"
        return None

    def _log(self, step: int, numbers: dict[str, Any]) -> None:
        if self._module is None and self._writer is None:
            self._open()
        if self._writer is not None:
            for key, value in numbers.items():
                self._writer.add_scalar(key, value, step)
        else:
            self._module.log(numbers, step=step)

    def _log_scores(self, step: int, numbers: dict[str, float]) -> None:
        if self.name != "wandb":
            self._log(step, numbers)
            return
        if self._module is None:
            self._open()
        for key in numbers.keys() - self._with_axis:
            self._module.define_metric(key, step_metric="evaluated/step")
        self._with_axis |= numbers.keys()
        self._module.log({**numbers, "evaluated/step": step})

    def _open(self) -> None:
        if self.name == "tensorboard":
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
            self._writer = writer(str(Path(self.recipe.output_dir) / "tensorboard"))
            return
        self._module = importlib.import_module(self.name)
        name = Path(self.recipe.output_dir).resolve().name
        self._module.init(project="sengi", name=name, config=self.recipe.model_dump(mode="json"))

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
        elif self._module is not None:
            self._module.finish()
