"""Packs inside one optimizer step: as few as possible, balanced over ranks, equal counts on all ranks.

A step's samples are fixed by the plan; packing only decides which of them share a micro-batch and on which rank.
Best fit decreasing finds the free space by a bitmap over space sizes, so a step of 3,840 samples takes well
under a millisecond; compiled by numba and cached on disk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sengi.errors import InputError

Int64s = NDArray[np.int64]
# Packs that each of several ranks needs before the halves of a step are told apart: the middle of the step is a second
# reduction of gradients, and may leave a second turn that is not full
TURNS_FOR_HALVES = 4


@dataclass(frozen=True)
class StepPacks:
    """The micro-batches of one step.

    Attributes:
        ranks: for each rank a list of packs, each an array of positions in the step's sample list. All ranks
            have the same number of packs; an empty array is a rank's turn with nothing to do.
        num_packs: packs that hold samples.
        tokens: tokens of the step.
        half: the first so many packs of every rank hold the first half of the samples; None where the halves are mixed.
    """

    ranks: list[list[Int64s]]
    num_packs: int
    tokens: int
    half: int | None = None

    def fill(self, budget: int) -> float:
        """Share of the token budget that is used, empty packs counted in."""
        slots = sum(len(packs) for packs in self.ranks)
        return self.tokens / (slots * budget) if slots else 0.0


def pack_lengths(lengths: Int64s, budget: int) -> int:
    """Number of packs that best fit decreasing needs for samples of these lengths on one rank.

    Raises:
        InputError: a sample is longer than the budget.
    """
    return int(_best_fit(lengths, np.argsort(-lengths, kind="stable"), _room(lengths, budget))[1])


def pack_step(
    lengths: Int64s, budget: int, world_size: int = 1, attention_cost: float = 0.0, *, halves: bool = False
) -> StepPacks:
    """Distribute a step's samples.

    Args:
        lengths: int64 (N,), tokens of each sample.
        budget: tokens a pack may hold.
        world_size: ranks.
        attention_cost: cost of one squared token in units of the cost of a token: a sample of length L costs
            ``L + attention_cost * L**2``.
        halves: where one rank needs several packs, or each of several ranks four, have the first ones hold the first
            half of the samples, at the price of one pack more at most times. Samples come in random order, so these
            are random halves, whose gradients tell noise from signal; packs, filled longest samples first, are not.

    Raises:
        InputError: a sample is longer than the budget.
    """
    budget = _room(lengths, budget)
    order = np.argsort(-lengths, kind="stable")
    costs = lengths + attention_cost * lengths.astype(np.float64) ** 2
    bins, count = _best_fit(lengths, order, budget)
    turns = -(-count // world_size)
    if halves and turns >= (2 if world_size == 1 else TURNS_FOR_HALVES):
        return _in_halves(lengths, budget, world_size, attention_cost)
    slots = turns * world_size
    if slots > count:  # there is slack: spread the samples evenly over all slots instead
        even, fits = _longest_first(lengths, costs, order, budget, slots)
        bins = even if fits else _split_bins(bins, order, count, slots)
    return _assign(bins, costs, lengths, slots, world_size)


def _in_halves(lengths: Int64s, budget: int, world_size: int, attention_cost: float) -> StepPacks:
    middle = len(lengths) // 2
    first, second = (
        pack_step(half, budget, world_size, attention_cost) for half in (lengths[:middle], lengths[middle:])
    )
    ranks = [mine + [pack + middle for pack in more] for mine, more in zip(first.ranks, second.ranks, strict=True)]
    return StepPacks(ranks, first.num_packs + second.num_packs, int(lengths.sum()), len(first.ranks[0]))


def _room(lengths: Int64s, budget: int) -> int:
    """The budget as far as it matters: the tables of the compiled code are as long as it is."""
    if len(lengths) and int(lengths.max()) > budget:
        raise InputError(
            f"max_tokens_per_device is {budget}, but a sample has {int(lengths.max())} tokens; "
            "raise max_tokens_per_device or lower max_length"
        )
    return min(budget, int(lengths.sum()))


def _assign(bins: Int64s, costs: NDArray[np.float64], lengths: Int64s, slots: int, world_size: int) -> StepPacks:
    """Packs of similar cost run at the same time on all ranks; the dearest of them goes to the least loaded rank."""
    by_bin = np.argsort(bins, kind="stable")
    edges = np.searchsorted(bins[by_bin], np.arange(slots + 1))
    members = [by_bin[edges[i] : edges[i + 1]] for i in range(slots)]
    load = np.bincount(bins, weights=costs, minlength=slots)
    dearest_first = np.argsort(-load, kind="stable")
    ranks: list[list[Int64s]] = [[] for _ in range(world_size)]
    for slot, rank in zip(dearest_first.tolist(), _ranks_of(load[dearest_first], world_size).tolist(), strict=True):
        ranks[rank].append(members[slot])
    return StepPacks(ranks, sum(len(m) > 0 for m in members), int(lengths.sum()))


@njit(cache=True)
def _best_fit(lengths, order, budget):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - compiled
    """Best fit decreasing. Returns (bin of each sample, number of bins).

    ``head[s]`` is the newest bin with s tokens free, ``below`` links bins of equal space; a bitmap of two levels
    (a bit a space, a bit a word) finds the smallest space that is large enough.
    """
    n = len(order)
    bins = np.empty(n, dtype=np.int64)
    head = np.full(budget + 1, -1, dtype=np.int64)
    below = np.empty(n, dtype=np.int64)
    words = budget // 64 + 1
    bitmap = np.zeros(words, dtype=np.uint64)
    count = 0
    one = np.uint64(1)
    for position in range(n):
        sample = order[position]
        length = lengths[sample]
        word = length // 64
        bits = bitmap[word] & ~((one << np.uint64(length % 64)) - one)
        while bits == 0:
            word += 1
            if word == words:
                break
            bits = bitmap[word]
        if word == words:
            chosen = count
            count += 1
            space = budget
        else:
            low = bits & (~bits + one)
            bit = 0
            while low > one:
                low >>= one
                bit += 1
            space = word * 64 + bit
            chosen = head[space]
            head[space] = below[chosen]
            if head[space] < 0:
                bitmap[word] &= ~(one << np.uint64(bit))
        bins[sample] = chosen
        rest = space - length
        below[chosen] = head[rest]
        head[rest] = chosen
        bitmap[rest // 64] |= one << np.uint64(rest % 64)
    return bins, count


@njit(cache=True)
def _longest_first(lengths, costs, order, budget, slots):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Longest first into the cheapest slot that has room. Returns (slot of each sample, whether all fitted)."""
    bins = np.empty(len(order), dtype=np.int64)
    load = np.zeros(slots, dtype=np.float64)
    tokens = np.zeros(slots, dtype=np.int64)
    for sample in order:
        best, least = -1, np.inf
        room = budget - lengths[sample]
        for slot in range(slots):  # a heap is slower: near the end the cheapest slots are too full, one by one
            if load[slot] < least and tokens[slot] <= room:
                best, least = slot, load[slot]
        if best < 0:
            return bins, False
        bins[sample] = best
        load[best] += costs[sample]
        tokens[best] += lengths[sample]
    return bins, True


@njit(cache=True)
def _ranks_of(load, world_size):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Rank of each slot, slots given dearest first: of each turn's, the dearest goes to the least loaded rank."""
    ranks = np.empty(len(load), dtype=np.int64)
    total = np.zeros(world_size, dtype=np.float64)
    for start in range(0, len(load), world_size):
        least_first = np.argsort(total, kind="mergesort")  # stable
        for place in range(world_size):
            rank = least_first[place]
            ranks[start + place] = rank
            total[rank] += load[start + place]
    return ranks


def _split_bins(bins: Int64s, order: Int64s, count: int, slots: int) -> Int64s:
    """Make more packs by moving every second sample of the fullest ones; needs no more room than there is."""
    bins = bins.copy()
    for new in range(count, slots):
        sizes = np.bincount(bins, minlength=slots)
        fullest = int(np.argmax(sizes))
        if sizes[fullest] < 2:
            break  # fewer samples than slots: the rest stay empty
        members = order[bins[order] == fullest]
        bins[members[1::2]] = new
    return bins
