"""What the measurements of benchmarks.throughput come to: pure functions of the steps that were timed.

MFU, model FLOPs utilisation, is the share of the peak that useful work took:

    MFU = FLOPs of the step / seconds of the step / peak
    FLOPs = 6 * tokens * parameters of the layers' matrices + 6 * targets * parameters of the head
          + 6 * layers * heads * head size * sum of squared document lengths          (sengi.model.cost)

Padding, attention between documents, head positions without a target and recomputation are work that nobody asked for:
they count for neither side. What our lean packs leave out (sengi.data.packs) is not computed and not counted as FLOPs
of ours, neither its tokens nor its squares; tokens/s counts all tokens of the conversations on both sides. On a CPU the
peak is the fastest matrix product on as many threads, measured right before and right after each step (their mean):
what a shared machine gives changes from minute to minute, and a step is held against what there was while it ran.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.table import Table


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        seconds: wall time; ``cpu_seconds`` of all threads.
        loss: in nats a target; ``grad_norm`` before clipping.
        peak: of the machine around it in FLOP/s, or None where that is not known.
    """

    seconds: float
    cpu_seconds: float
    loss: float
    grad_norm: float
    peak: float | None = None


@dataclass(frozen=True)
class Side:
    """One trainer with one setting.

    Attributes:
        name: the setting; ``sengi`` is ours, ``default`` the peer's own defaults.
        steps: in order; the first ones are not timed, but the seconds of the very first are told.
        peak_bytes: most memory of the process.
        flops: of a step, by the formula above.
        warm_up: steps that are not timed.
    """

    name: str
    steps: Sequence[Step]
    peak_bytes: int
    flops: float
    warm_up: int = 1

    @property
    def timed(self) -> Sequence[Step]:
        """All steps but the first ones."""
        return self.steps[self.warm_up :]

    @property
    def seconds(self) -> float:
        """Median wall time of a step."""
        return statistics.median(step.seconds for step in self.timed)


@dataclass(frozen=True)
class Work:
    """What a step is, the same on all sides."""

    conversations: int
    tokens: int
    targets: int


def ratio(ours: Side, other: Side, cpu: bool = False) -> float:
    """How many times faster we are: median over the rounds, whose steps ran one after the other."""
    key = "cpu_seconds" if cpu else "seconds"
    pairs = zip(ours.timed, other.timed, strict=True)
    return statistics.median(getattr(theirs, key) / getattr(own, key) for own, theirs in pairs)


def best_of(peers: Sequence[Side]) -> Side:
    """The fastest of the peer's settings."""
    return min(peers, key=lambda side: side.seconds)


def loss_difference(ours: Side, peers: Sequence[Side]) -> float:
    """Largest difference of a loss from ours, over all settings and steps."""
    return max(abs(a.loss - b.loss) for peer in peers for a, b in zip(ours.steps, peer.steps, strict=True))


def summary(ours: Side, peers: Sequence[Side], work: Work) -> dict[str, Any]:
    """The object that ``--json`` prints; seconds are medians, ``spread`` the least and the most of the ratio."""
    best, default = best_of(peers), next(side for side in peers if side.name == "default")
    rounds = [b.seconds / a.seconds for a, b in zip(ours.timed, best.timed, strict=True)]
    return {
        "ratio_to_peer_best": ratio(ours, best),
        "ratio_to_peer_best_spread": [min(rounds), max(rounds)],
        "ratio_to_peer_best_cpu": ratio(ours, best, cpu=True),
        "ratio_to_peer_default": ratio(ours, default),
        "ratio_to_peer_default_cpu": ratio(ours, default, cpu=True),
        "peer_best": best.name,
        "first_loss_difference": max(abs(ours.steps[0].loss - peer.steps[0].loss) for peer in peers),
        "loss_difference": loss_difference(ours, peers),
        "mfu": mfu(ours),
        "mfu_spread": [min(shares), max(shares)] if (shares := mfu_of_rounds(ours)) else None,
        "memory_ratio": ours.peak_bytes / best.peak_bytes,
        "peak_bytes": ours.peak_bytes,
        "tokens_per_second": work.tokens / ours.seconds,
        "supervised_tokens_per_second": work.targets / ours.seconds,
        "step_seconds": ours.seconds,
        "peer_best_tokens_per_second": work.tokens / best.seconds,
        "peer_default_tokens_per_second": work.tokens / default.seconds,
    }


def mfu_of_rounds(side: Side) -> list[float]:
    """Share of the peak that useful work took, for each timed step; empty where the peak is not known."""
    return [side.flops / step.seconds / step.peak for step in side.timed if step.peak]


def mfu(side: Side) -> float | None:
    """Median over the rounds of the share of the peak that useful work took, or None where the peak is not known."""
    shares = mfu_of_rounds(side)
    return statistics.median(shares) if shares else None


def table(title: str, sides: Sequence[Side], work: Work, notes: Sequence[str]) -> Table:
    """All sides below one another."""
    first = ("trainer", "step s", "least", "most", "CPU s", "first s", "tokens/s", "supervised/s", "MFU %", "peak GB")
    columns = (*first, "first loss", "last loss", "first grad norm")
    rows = []
    for side in sides:
        share = mfu(side)
        times = [step.seconds for step in side.timed]
        rows.append(
            (
                side.name,
                side.seconds,
                min(times),
                max(times),
                statistics.median(step.cpu_seconds for step in side.timed),
                side.steps[0].seconds,
                work.tokens / side.seconds,
                work.targets / side.seconds,
                100 * share if share is not None else "-",
                side.peak_bytes / 1e9,
                f"{side.steps[0].loss:.5f}",
                f"{side.steps[-1].loss:.5f}",
                f"{side.steps[0].grad_norm:.4f}",
            )
        )
    return Table(title, columns, rows, notes)
