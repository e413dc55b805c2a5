"""Which samples make which step: a pure function of the data, the seed and the step number.

The training order is the concatenation of seeded epoch permutations; step k (from 1) takes samples
[(k-1)N, kN) of it. Nothing here knows of ranks, packs or devices, so none of them can change a step's samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea, Flood, 2014): a bijection of 64-bit integers that looks random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _keys(seed: int, epoch: int, count: int) -> NDArray[np.uint64]:
    """One random-looking 64-bit key a sample. NumPy's own generators may change their streams between versions
    (NEP 19); an order that must be the same in ten years is computed here."""
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed], dtype=np.uint64) * _GOLDEN + np.uint64(epoch + 1))
        start = _mix(start + _GOLDEN)
        return _mix(start + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


@dataclass(frozen=True)
class StepPlan:
    """The order of the data.

    Attributes:
        num_samples: samples in the store.
        batch_size: samples a step (N).
        num_epochs: times the data is seen.
        seed: decides the permutations.
        max_steps: steps after which the plan ends, or None.
        entries: (number of samples, weight) of each data entry, in store order; weights are times an epoch.
    """

    num_samples: int
    batch_size: int
    num_epochs: int
    seed: int
    max_steps: int | None = None
    entries: Sequence[tuple[int, float]] = ()
    _kept: dict[int, Int64s] = field(default_factory=dict, repr=False, compare=False)

    @property
    def epoch_size(self) -> int:
        """Samples an epoch, weights counted in; the same in each epoch."""
        if not self.entries:
            return self.num_samples
        return sum(int(weight) * count + round((weight % 1) * count) for count, weight in self.entries)

    @property
    def total_samples(self) -> int:
        """Samples of the whole run."""
        everything = self.epoch_size * self.num_epochs
        return everything if self.max_steps is None else min(everything, self.max_steps * self.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run; the last one may be short."""
        return -(-self.total_samples // self.batch_size)

    @property
    def last_step_size(self) -> int:
        """Samples in the last step."""
        return self.total_samples - (self.num_steps - 1) * self.batch_size

    def epoch_order(self, epoch: int) -> Int64s:
        """Store indices of epoch ``epoch`` (from 0) in training order, int64 (epoch_size,)."""
        keys = _keys(self.seed, epoch, self.num_samples)
        if all(weight == 1 for _, weight in self.entries):
            return np.argsort(keys, kind="stable").astype(np.int64)
        chosen: list[Int64s] = []
        start = 0
        for count, weight in self.entries:
            members = np.arange(start, start + count, dtype=np.int64)
            chosen += [members] * int(weight)
            share = round((weight % 1) * count)
            chosen.append(start + np.argsort(keys[start : start + count], kind="stable")[:share].astype(np.int64))
            start += count
        samples = np.concatenate(chosen)
        return samples[np.argsort(_keys(self.seed ^ 0x5EED, epoch, len(samples)), kind="stable")]

    def step_samples(self, step: int) -> Int64s:
        """Store indices of step ``step`` (from 1), in training order; at most ``batch_size`` of them.

        Raises:
            ValueError: no such step.
        """
        if not 1 <= step <= self.num_steps:
            raise ValueError(f"step {step} is outside 1..{self.num_steps}")
        start = (step - 1) * self.batch_size
        stop = min(start + self.batch_size, self.total_samples)
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.epoch_size)
            part = self._order(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def epoch_at(self, step: int) -> float:
        """Epochs seen after ``step``."""
        return min(step * self.batch_size, self.total_samples) / self.epoch_size

    def _order(self, epoch: int) -> Int64s:
        """The permutation of ``epoch``, kept while it is in use (a step may touch two epochs)."""
        if epoch not in self._kept:
            for old in [e for e in self._kept if abs(e - epoch) > 1]:
                del self._kept[old]
            self._kept[epoch] = self.epoch_order(epoch)
        return self._kept[epoch]
