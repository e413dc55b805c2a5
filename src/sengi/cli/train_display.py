"""What training looks like in a terminal: a live bar, or one line a step where there is none (logs, pipes)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from sengi.cli.console import err, out
from sengi.cli.plan import print_plan
from sengi.data.phases import epochs_seen
from sengi.recipe import Recipe
from sengi.report.formats import duration, score
from sengi.report.trackers import Tracker
from sengi.train.alarms import Alarm
from sengi.train.observer import Observer
from sengi.train.run_plan import RunPlan

LINES = 12  # scores that are printed of one evaluation
MEMORY = 0.7  # weight of the past in the smoothed speed


class TrainDisplay(Observer):
    """Draws the events of a run on stderr; the plan goes to stdout."""

    def __init__(self, recipe: Recipe, trackers: Sequence[Tracker] = ()) -> None:
        self.recipe = recipe
        self.trackers = trackers
        self._live = err.is_terminal
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=err,
            auto_refresh=self._live,
            expand=True,
        )
        self._task: Any = None
        self._reading: Any = None
        self._begun = time.monotonic()
        self._speed = 0.0  # samples a second, smoothed
        self._seen = 0
        self._samples = (0, 0)
        self._steps = 0
        self._numbers = ""
        self._plan: RunPlan | None = None
        self._saved = ""  # name of the newest checkpoint
        self._told: tuple[int, str, int] | None = None

    def __enter__(self) -> TrainDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()
        for tracker in self.trackers:
            self._tell(tracker.finish())

    def message(self, text: str) -> None:
        """A sentence above the bar."""
        self._print(Text(f"note: {text}", style="yellow"))

    def tokenizing(self, rows: int, share: float) -> None:
        """A bar of its own while data is tokenized; in a log, a line every tenth of the way."""
        self._show_reading("tokenizing", share, f"{rows:,} rows")

    def comparing(self, share: float) -> None:
        """As for tokenizing."""
        self._show_reading("comparing the data with the evaluation's questions", share, "")

    def _show_reading(self, what: str, share: float, numbers: str) -> None:
        if self._reading is None:
            self._reading = self._bar.add_task(what, total=1.0, numbers="")
            if self._live:
                self._bar.start()
        task = next(task for task in self._bar.tasks if task.id == self._reading)
        tenth = int(10 * task.completed) if task.description == what else 0
        self._bar.update(self._reading, description=what, completed=share, numbers=numbers)
        if not self._live and int(10 * share) > tenth:
            err.print(f"{what}: {share:.0%} of the files{f', {numbers}' if numbers else ''}", markup=False)

    def plan(self, plan: RunPlan) -> None:
        """Print the plan before anything is trained."""
        if self._reading is not None:
            self._bar.stop()
            self._bar.remove_task(self._reading)
        self._plan = plan
        print_plan(plan, self.recipe)
        out.file.flush()
        if self.recipe.eval_questions:
            self._print(Text("scoring questions before training ..."))

    def start(self, step: int, num_steps: int, samples_seen: int, total_samples: int) -> None:
        """Start the bar."""
        self._steps, self._samples, self._seen = num_steps, (samples_seen, total_samples), samples_seen
        self._begun = time.monotonic()
        self._task = self._bar.add_task("training", total=total_samples, completed=samples_seen, numbers="")
        if self._live:
            self._bar.start()

    def micro_batch(self, samples_seen: int) -> None:
        """Move the bar inside a step; large steps take minutes."""
        if self._task is not None:
            self._bar.update(self._task, completed=samples_seen)

    def step(self, record: dict[str, Any]) -> None:
        """Loss, gradient norm, speed and time left."""
        samples = record["samples_seen"] - self._seen
        speed = samples / max(record["step_seconds"], 1e-9)
        self._speed = speed if not self._speed else MEMORY * self._speed + (1 - MEMORY) * speed
        self._seen = record["samples_seen"]
        left = (self._samples[1] - self._seen) / self._speed
        self._numbers = (
            f"loss {record['loss']:.4f}  grad norm {record['grad_norm']:.3f}  "
            f"{record['tokens_per_second']:,.0f} tokens/s  {duration(left)} left"
        )
        where, numbers = self._where(record), f"{self._numbers}  {self._saved}".rstrip()
        self._bar.update(self._task, completed=self._seen, numbers=numbers, description=escape(where))
        if not self._live:
            where = f"{where}  " if self.recipe.strategy == "phased" else ""
            err.print(f"step {record['step']}/{self._steps}  {where}{self._numbers}", markup=False, soft_wrap=True)
        if self._seen == self._samples[1]:
            self._bar.stop()
        for tracker in self.trackers:
            self._tell(tracker.log(record))

    def alarm(self, alarm: Alarm) -> None:
        """An alarm, above the bar."""
        self._print(Text(f"alarm: {alarm.sentence}", style="bold red"))

    def _where(self, record: dict[str, Any]) -> str:
        """Phase and epoch of a step, for example ``skills (2/3), epoch 4/10``."""
        phases = self._plan.phases if self._plan else []
        number = next((n for n, phase in enumerate(phases) if record["step"] <= phase["last_step"]), None)
        if number is None:
            return "training"
        epoch = f"epoch {max(1, math.ceil(record['epoch']))}/{epochs_seen(phases[number])}"
        if self.recipe.strategy == "stacked":
            return f"training, {epoch}"
        return f"{record['phase']} ({number + 1}/{len(phases)}), {epoch}"

    def saved(self, folder: Path) -> None:
        """A checkpoint is safe."""
        self._saved = folder.name
        self._print(Text(f"saved {folder}"))

    def evaluated(self, step: int, scores: list[dict[str, Any]]) -> None:
        """The scores over everything, one line each; of many (the tasks of a group) the first ones."""
        self._scoring("")
        known = [row for row in scores if row["value"] is not None and math.isfinite(row["value"])]
        numbers = {f"{row['task']}/{row['metric']}/{row['group']}": float(row["value"]) for row in known}
        for tracker in self.trackers:
            self._tell(tracker.evaluated(step, self._plan.samples_seen(step) if self._plan else 0, numbers))
        whole = [row for row in known if row["group"] == "all"]
        for row in whole[:LINES]:
            value = score(row["value"], row["metric"])
            self._print(Text(f"step {step}: {row['task']} {row['metric'].replace('_', ' ')} {value}"))
        if len(whole) > LINES:
            self._print(Text(f"step {step}: {len(whole) - LINES} more scores in evaluations/"))

    def evaluating(self, step: int, task: str, done: int, total: int) -> None:
        """Questions answered so far while training waits, beside the bar; in a log, a line every tenth of the way."""
        tenth = 10 * done // max(1, total)
        if self._live:
            self._scoring(f"scoring {task} at step {step}: {done:,}/{total:,}  ")
        elif (step, task, tenth) != self._told:
            self._told = step, task, tenth
            err.print(f"scoring {task} at step {step}: {done:,} of {total:,}", markup=False)

    def _scoring(self, text: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, numbers=text + self._numbers)

    def _tell(self, problem: str | None) -> None:
        if problem is not None:
            self.message(problem)

    def _print(self, text: Text) -> None:
        self._bar.console.print(text, soft_wrap=True)
