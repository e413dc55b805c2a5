"""How large a difference between two runs must be to be more than chance: margins of loss and of gradient norm.

Where settings were run with several seeds, the spread between those runs is the seed noise. Where they were not, it is
estimated from inside the runs: the robust spread of single steps around the window's trend, carried over to a
median. Runs of one seed see the same samples, so this second estimate counts some noise that they share (too wide) and
leaves out that their paths drift apart (too narrow); a verdict says which of the two it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sengi.statistics.intervals import normal_quantile, t_quantile
from sengi.study.signals import MEDIAN_ERROR, History, Signals, robust_sd

LEAST_LOSS = 0.005  # nats and (below) relative norm: less is not worth a stop however sure it is
LEAST_NORM = 0.02


@dataclass(frozen=True)
class Margins:
    """How far chance moves a run's signals: standard deviations times the quantile that counts as more than chance.

    Attributes:
        loss: of a run's window loss over seeds, nats; or of one sample's, with ``by_seeds`` false.
        norm: likewise of a run's logarithm of the norm, or of one step's. Infinite where it is unknown: too few runs
            have a norm above their noise.
        by_seeds: whether repeated seeds told the spread.
        source: the same for people.
    """

    loss: float
    norm: float
    by_seeds: bool
    source: str

    def of_loss(self, one: Signals, other: Signals) -> float:
        """Difference in loss that is more than chance, nats."""
        error = math.sqrt(2) if self.by_seeds else MEDIAN_ERROR * math.sqrt(1 / one.samples + 1 / other.samples)
        return max(LEAST_LOSS, self.loss * error)

    def of_norm(self, one: Signals, other: Signals) -> float:
        """Difference in the logarithm of the norm that is more than chance; infinite where that is unknown."""
        error = math.sqrt(2) if self.by_seeds else MEDIAN_ERROR * math.sqrt(1 / one.steps + 1 / other.steps)
        return max(LEAST_NORM, self.norm * error)


def calibrate(runs: Mapping[str, tuple[History, Signals]], corrected: bool, confidence: float) -> Margins:
    """Margins for the runs of one field.

    A run of whose norm only noise was seen has no logarithm to be averaged: it has no part in the margin of the norm.

    Args:
        runs: by name; order does not matter.
        corrected: whether their norms are compared without noise.
        confidence: share of differences by chance alone that stay within the margin.
    """
    repeated: dict[tuple[str, int], list[Signals]] = {}
    for _, (history, signals) in sorted(runs.items()):
        repeated.setdefault((history.settings, history.batch_size), []).append(signals)
    groups = [group for group in repeated.values() if len(group) > 1]
    if groups:
        norms = [[run.log_norm(corrected) for run in group] for group in groups]
        return Margins(
            loss=_reach([[run.loss for run in group] for group in groups], confidence),
            norm=_reach([[norm for norm in group if math.isfinite(norm)] for group in norms], confidence),
            by_seeds=True,
            source=f"{len(groups)} setting{'' if len(groups) == 1 else 's'} with repeated seeds",
        )
    signals_of = [signals for _, (_, signals) in sorted(runs.items())]
    seen = [run for run in signals_of if math.isfinite(run.log_norm(corrected))]
    residuals = [run.corrected_residuals if corrected else run.norm_residuals for run in seen]
    quantile = normal_quantile(confidence)
    return Margins(
        loss=quantile * robust_sd([run.loss_residuals for run in signals_of]),
        norm=quantile * robust_sd(residuals) if seen else math.inf,
        by_seeds=False,
        source="the spread of steps inside the runs, no seed was repeated",
    )


def _reach(groups: list[list[float]], confidence: float) -> float:
    """Standard deviation inside groups times Student's quantile; infinite where no group has two values."""
    freedom = sum(len(group) - 1 for group in groups if group)
    if not freedom:
        return math.inf
    squares = 0.0
    for group in filter(None, groups):
        mean = sum(group) / len(group)
        squares += sum((value - mean) ** 2 for value in group)
    return float(t_quantile((1 + confidence) / 2, freedom)) * math.sqrt(squares / freedom)
