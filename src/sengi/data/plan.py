"""Which samples make which step: a pure function of the data, the seed and the step number.

The training order is the concatenation of seeded epoch permutations; step k (from 1) takes samples
[(k-1)N, kN) of it. Nothing here knows of ranks, packs or devices, so none of them can change a step's samples.

The permutation of a large epoch is never held as a whole: samples are ordered by random keys, and keys of one range
at a time are computed and sorted, which gives the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BLOCK_BITS = 20  # a block has about 2**20 samples at most: 50 MB while it is sorted


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea, Flood, 2014): a bijection of 64-bit integers that looks random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sample_keys(seed: int, epoch: int, first: int, count: int) -> NDArray[np.uint64]:
    """One random-looking 64-bit key a sample, from sample ``first`` on, uint64 (count,).

    NumPy's own generators may change their streams between versions (NEP 19); an order that must be the same in ten
    years is computed here.
    """
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed], dtype=np.uint64) * _GOLDEN + np.uint64(epoch + 1))
        start = _mix(start + _GOLDEN)
        return _mix(start + np.arange(first + 1, first + count + 1, dtype=np.uint64) * _GOLDEN)


class Permutation:
    """The numbers 0 to n - 1 in the order of their keys, of which one block at a time is in memory.

    A block holds the numbers whose keys have the same highest bits.

    Args:
        seed: with ``epoch`` decides the keys.
        epoch: from 0.
        size: n.
    """

    def __init__(self, seed: int, epoch: int, size: int) -> None:
        self._seed, self._epoch, self._size = seed, epoch, size
        self._bits = max(0, (max(size, 1) - 1).bit_length() - BLOCK_BITS)
        counts = np.zeros(1 << self._bits, dtype=np.int64)
        if self._bits:
            for _, keys in self._chunks():
                counts += np.bincount((keys >> np.uint64(64 - self._bits)).astype(np.int64), minlength=len(counts))
        else:
            counts[0] = size
        self._ends = np.concatenate(([0], np.cumsum(counts)))
        self._kept: tuple[int, Int64s] = (-1, np.empty(0, dtype=np.int64))

    def part(self, start: int, stop: int) -> Int64s:
        """Places ``start`` to ``stop`` of the order, int64 (stop - start,)."""
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            block = int(np.searchsorted(self._ends, start, side="right")) - 1
            begin, end = int(self._ends[block]), min(int(self._ends[block + 1]), stop)
            parts.append(self._block(block)[start - begin : end - begin])
            start = end
        return np.concatenate(parts)

    def _block(self, block: int) -> Int64s:
        if self._kept[0] != block:
            self._kept = (block, self._sorted(block))
        return self._kept[1]

    def _sorted(self, block: int) -> Int64s:
        if not self._bits:
            return np.argsort(sample_keys(self._seed, self._epoch, 0, self._size), kind="stable").astype(np.int64)
        numbers: list[Int64s] = []
        values: list[NDArray[np.uint64]] = []
        for first, keys in self._chunks():
            mine = np.flatnonzero(keys >> np.uint64(64 - self._bits) == np.uint64(block))
            numbers.append(mine + first)
            values.append(keys[mine])
        return np.concatenate(numbers)[np.argsort(np.concatenate(values), kind="stable")]

    def _chunks(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        step = 1 << BLOCK_BITS
        for first in range(0, self._size, step):
            yield first, sample_keys(self._seed, self._epoch, first, min(step, self._size - first))


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
    _kept: dict[int, tuple[Permutation, Int64s | None]] = field(default_factory=dict, repr=False, compare=False)

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
        return self._part(epoch, 0, self.epoch_size)

    def _part(self, epoch: int, start: int, stop: int) -> Int64s:
        """Places ``start`` to ``stop`` of the order of an epoch; what it needs is kept while the epoch is in use."""
        if epoch not in self._kept:
            for old in [e for e in self._kept if abs(e - epoch) > 1]:  # a step may touch two epochs
                del self._kept[old]
            self._kept[epoch] = self._epoch(epoch)
        order, samples = self._kept[epoch]
        places = order.part(start, stop)
        return places if samples is None else samples[places]

    def _epoch(self, epoch: int) -> tuple[Permutation, Int64s | None]:
        """The permutation of an epoch, and what it permutes where that is not each sample once."""
        if all(weight == 1 for _, weight in self.entries):
            return Permutation(self.seed, epoch, self.num_samples), None
        chosen: list[Int64s] = []
        start = 0
        for count, weight in self.entries:
            members = np.arange(start, start + count, dtype=np.int64)
            chosen += [members] * int(weight)
            share = round((weight % 1) * count)
            order = np.argsort(sample_keys(self.seed, epoch, start, count), kind="stable") if share else members
            chosen.append(start + order[:share])
            start += count
        samples = np.concatenate(chosen)
        return Permutation(self.seed ^ 0x5EED, epoch, len(samples)), samples

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
            part = self._part(epoch, offset, min(offset + stop - start, self.epoch_size))
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def epoch_at(self, step: int) -> float:
        """Epochs seen after ``step``."""
        return min(step * self.batch_size, self.total_samples) / self.epoch_size
