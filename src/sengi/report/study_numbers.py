"""Scores of one study as text: all with the same decimals, as many as its differences ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sengi.report import formats
from sengi.study.objective import HELDOUT, parts
from sengi.study.results import StudyResults

FEWEST, MOST = 3, 5  # decimals


@dataclass(frozen=True)
class ScoreText:
    """Prints scores of a metric, and differences of them.

    Attributes:
        metric: shares are printed in percent.
        decimals: of all other metrics.
    """

    metric: str
    decimals: int = 3

    def score(self, value: float) -> str:
        """A score."""
        if formats.is_share(self.metric) or not math.isfinite(value):
            return formats.score(value, self.metric)
        return f"{value:,.{self.decimals}f}".replace("-", "−")

    def difference(self, value: float) -> str:
        """A difference, with its sign."""
        if formats.is_share(self.metric) or not math.isfinite(value):
            return formats.difference(value, self.metric)
        return f"{value:+,.{self.decimals}f}".replace("-", "−")

    def difference_with(self, value: float, low: float, high: float) -> str:
        """A difference with its interval in brackets, where there is one."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return self.difference(value)
        ends = f"{self.difference(low)} to {self.difference(high)}"
        if formats.is_share(self.metric):
            ends = formats.points_interval(low, high)
        return f"{self.difference(value)} ({ends})"

    def score_with(self, value: float, low: float, high: float) -> str:
        """A score with its interval in brackets, where there is one."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return self.score(value)
        return f"{self.score(value)} ({self.score(low)} to {self.score(high)})"


def objective_text(objective: str) -> str:
    """The objective for people."""
    task, metric = parts(objective)
    return "held-out loss" if objective == HELDOUT else f"{formats.metric(metric)} of {task}"


def score_text(results: StudyResults) -> ScoreText:
    """How the scores of a study are printed: its whole range takes three digits."""
    scores = [run.score.value for run in results.scored if run.score is not None]
    span = max(scores) - min(scores) if scores else 0.0
    decimals = 2 - math.floor(math.log10(span)) if span > 0 else 3
    return ScoreText(parts(results.objective)[1], max(FEWEST, min(MOST, decimals)))
