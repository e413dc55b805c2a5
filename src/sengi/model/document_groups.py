"""How short documents of a pack are laid side by side: which go together, and where each token of each head lies.

Shapes: T tokens of a pack, H query heads, K key/value heads, R = H / K, P shared tokens, L padded length of a group,
N its documents.

Rows are what one head has at one token. Those of a group lie as (N, K, R, L) for queries and (N, K, P + L) for keys and
values, one group behind the other, so that one gathering makes all of them and each group is a batch of products. All
arrays are NumPy's, as they are kept between calls: tensors could be made while memory is traced, and have no content
then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ROUND = 8  # padded lengths are multiples of it: vectors have eight or sixteen numbers
# What one more group and one more row cost, in logits of a head: measured on 2 cores (docs/results/throughput.md)
GROUP = 80_000
ROW = 100

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """N documents, padded to L tokens, that each see P tokens before their own."""

    documents: int
    length: int
    before: int


@dataclass(frozen=True)
class Rows:
    """Where the rows of a pack lie in its groups.

    Attributes:
        sources: for each row of the groups the row of the pack, ``token * heads + head``; of padding that of the
            document's first token.
        places: (T * heads,), for each row of the pack its row in the groups.
        padding: the rows of the groups that are padding.
        copies: (documents, P, heads), the rows of the shared tokens in each document that sees them; None without any.
    """

    sources: Numbers
    places: Numbers
    padding: Numbers
    copies: Numbers | None = None


@dataclass(frozen=True)
class Layout:
    """The groups of a pack, and the rows of its queries and of its keys and values."""

    groups: tuple[Group, ...]
    queries: Rows
    keys: Rows


@lru_cache(maxsize=4)  # asked for by every layer of a pack
def lay_out(lengths: tuple[int, ...], shared: int, heads: int, kinds: int) -> Layout:
    """Groups and rows of a pack.

    Args:
        lengths: tokens of each document; with shared tokens, they are the first one.
        shared: tokens at the beginning of the pack that all documents see before their own.
        heads: H; ``kinds``: K.
    """
    members = _choose(lengths, shared, heads)
    groups = tuple(Group(len(numbers), length, before) for before, length, numbers in members)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens, real = [], []  # (N, L) each: the token at a place, and whether it is one of the document
    for group, (_, _, numbers) in zip(groups, members, strict=True):
        at, first = np.arange(group.length), starts[numbers][:, None]
        real.append(at < np.array(lengths)[numbers][:, None])
        tokens.append(np.where(real[-1], first + at, first))
    repeats = heads // kinds
    return Layout(
        groups, _rows(groups, tokens, real, kinds, repeats, False), _rows(groups, tokens, real, kinds, 1, True)
    )


def _choose(lengths: Sequence[int], shared: int, heads: int) -> list[tuple[int, int, list[int]]]:
    """Tokens before, padded length and documents of each group, chosen so that padding and groups cost least."""
    kinds: dict[int, list[int]] = {}  # padded length -> documents
    for number in range(1 if shared else 0, len(lengths)):
        kinds.setdefault(-(-lengths[number] // ROUND) * ROUND, []).append(number)
    padded = sorted(kinds)
    best, begins = [0.0], [0]  # of the first n lengths: least cost, and where the last group begins
    for stop, length in enumerate(padded, start=1):
        of_one, documents, costs = heads * length * (shared + length + ROW), 0, []
        for start in reversed(range(stop)):
            documents += len(kinds[padded[start]])
            costs.append((best[start] + documents * of_one + GROUP, start))
        cost, start = min(costs)
        best.append(cost)
        begins.append(start)
    chosen = [(0, -(-shared // ROUND) * ROUND, [0])] if shared else []
    stop = len(padded)
    while stop:
        start = begins[stop]
        together = sorted(number for length in padded[start:stop] for number in kinds[length])
        chosen.append((shared, padded[stop - 1], together))
        stop = start
    return chosen


def _rows(
    groups: Sequence[Group],
    tokens: Sequence[Numbers],
    real: Sequence[NDArray[np.bool_]],
    kinds: int,
    repeats: int,
    with_shared: bool,
) -> Rows:
    """Rows of (N, K, R, L) for each group; with shared tokens, (N, K, R, P + L)."""
    sources, padding, copies, total = [], [], [], 0
    places = np.empty((sum(int(of_group.sum()) for of_group in real), kinds * repeats), np.int64)
    head = np.arange(kinds * repeats).reshape(1, kinds, repeats, 1)
    for group, at, own in zip(groups, tokens, real, strict=True):
        before = group.before if with_shared else 0
        shared = np.broadcast_to(np.arange(before), (group.documents, before))
        rows = np.concatenate([shared, at], axis=1)[:, None, None, :] * head.size + head
        numbers = total + np.arange(rows.size).reshape(rows.shape)
        by_token = numbers[..., before:].transpose(0, 3, 1, 2).reshape(*at.shape, -1)  # (N, L, heads)
        places[at[own]] = by_token[own]
        padding.append(by_token[~own].ravel())
        if before:
            copies.append(numbers[..., :before].transpose(0, 3, 1, 2).reshape(group.documents, before, -1))
        sources.append(rows.ravel())
        total += rows.size
    return Rows(
        np.concatenate(sources), places.ravel(), np.concatenate(padding), np.concatenate(copies) if copies else None
    )
