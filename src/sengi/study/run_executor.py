"""What trains the runs of a study: the words that the scheduler speaks with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sengi.study.space import Run


@dataclass(frozen=True)
class Ended:
    """How the process of a run ended: exit code as a shell gives it, and its last error line."""

    code: int
    cause: str


class RunExecutor(Protocol):
    """What trains runs; the scheduler asks, and never waits for it."""

    @property
    def free(self) -> int:
        """Runs that can be started now."""

    def start(self, run: Run) -> None:
        """Train ``run.request``; its folder is there."""

    def stop(self, run: Run) -> None:
        """Ask a run to save and stop; it ends later."""

    def ended(self) -> dict[str, Ended]:
        """Runs whose process ended since the last call, by name."""
