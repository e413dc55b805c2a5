"""What a run tells the world while it works; the command line draws it, Python code may listen too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sengi.train.alarms import Alarm


class Observer:
    """All events of a run, on rank 0; this base class ignores them."""

    def message(self, text: str) -> None:
        """A sentence that people should see: a fallback, a repair, a resume."""

    def tokenizing(self, rows: int, share: float) -> None:
        """Rows tokenized so far, and the share of the files that was read."""

    def comparing(self, share: float) -> None:
        """Share of the training data that was compared with the evaluation's questions."""

    def plan(self, plan: Any) -> None:
        """The plan (:class:`sengi.train.run_plan.RunPlan`), before anything is trained."""

    def start(self, step: int, num_steps: int, samples_seen: int, total_samples: int) -> None:
        """Training begins after ``step`` steps done."""

    def micro_batch(self, samples_seen: int) -> None:
        """A micro-batch begins; ``samples_seen`` counts the samples before it."""

    def step(self, record: dict[str, Any]) -> None:
        """A step is done; the line of dynamics.jsonl."""

    def alarm(self, alarm: Alarm) -> None:
        """A step raised an alarm; docs/advice.md says which there are."""

    def saved(self, folder: Path) -> None:
        """A checkpoint is safe on disk."""

    def evaluating(self, step: int, task: str, done: int, total: int) -> None:
        """Questions of a task answered so far, while training waits."""

    def evaluated(self, step: int, scores: list[dict[str, Any]]) -> None:
        """Held-out losses, question scores or task scores of a step, perhaps an earlier one than the last."""
