"""Prompts that begin alike, gathered so that their beginning is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MIN_PREFIX = 16  # tokens; keeping a shorter beginning apart is not worth its bookkeeping
# Tokens that a group of its own must save: at its end few rows are left to share a step.
GROUP_COST = 512


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Prompts with a common beginning.

    Attributes:
        prefix: tokens of the beginning, 0 where nothing is shared; shorter than every prompt of the group.
        indices: the prompts, in the order given.
    """

    prefix: int
    indices: list[int]


def prefix_groups(prompts: Sequence[Sequence[int]]) -> list[PrefixGroup]:
    """Gather prompts so that many tokens are shared in few groups.

    Sorted prompts are cut where neighbours have fewer than 16, 32, 64, ... tokens in common, and the best of these
    ways is taken; what no group of its own takes stays together in one.

    Args:
        prompts: token ids, none empty.

    Returns:
        Every prompt in exactly one group; the largest saving first.
    """
    if not prompts:
        return []
    keys = [np.asarray(ids, dtype=np.int64) for ids in prompts]
    order = sorted(range(len(keys)), key=lambda index: keys[index].astype(">u4").tobytes())
    common = [_common_prefix(keys[a], keys[b]) for a, b in pairwise(order)]
    best: list[PrefixGroup] = []
    most, threshold = -GROUP_COST * (len(keys) + 1), MIN_PREFIX
    while not best or threshold <= max(common, default=0):
        groups = _cut(keys, order, common, threshold)
        saved = sum((len(group.indices) - 1) * group.prefix - GROUP_COST for group in groups)
        if saved > most:
            best, most = groups, saved
        threshold *= 2
    return best


def _cut(keys: list[NDArray[np.int64]], order: list[int], common: list[int], threshold: int) -> list[PrefixGroup]:
    """The groups of the sorted prompts when neighbours with less than ``threshold`` tokens in common are parted."""
    cuts = [0, *(i + 1 for i, length in enumerate(common) if length < threshold), len(order)]
    groups, rest = [], []
    for start, stop in pairwise(cuts):
        group = _group(keys, order[start:stop])
        if (stop - start - 1) * group.prefix >= GROUP_COST:
            groups.append(group)
        else:
            rest += order[start:stop]
    if rest:
        groups.append(_group(keys, rest))
    return sorted(groups, key=lambda group: -len(group.indices) * group.prefix)


def _group(keys: list[NDArray[np.int64]], members: list[int]) -> PrefixGroup:
    """Prompts in sorted order as a group: what the first and the last have in common, all have."""
    shared = min(_common_prefix(keys[members[0]], keys[members[-1]]), min(len(keys[i]) for i in members) - 1)
    return PrefixGroup(shared if shared >= MIN_PREFIX and len(members) > 1 else 0, sorted(members))


def _common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Tokens that two prompts begin with alike."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length
