"""Causal attention of short documents on a CPU in half precision: those of similar length lie side by side.

Shapes: T tokens of a pack, H query heads, K key/value heads, R = H / K, D head size, P shared tokens, L tokens of the
longest document of a group, N documents of a group.

A CPU's fused attention takes documents one at a time, and its backward pass is slow: for documents of 64 to 512 tokens
twice to five times as long as plain products (docs/results/throughput.md). Here documents are padded to groups of one
length, and each group is two batched products with a softmax between them. Padding lies behind a document, so no token
of it sees any, and its own results are dropped. Logits are rounded to half precision before the softmax, which computes
in float32, as in transformers' eager attention.

What is kept between calls are NumPy arrays: tensors could be made while memory is traced, and then have no content.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LONGEST = 512  # tokens: the squares are kept for the backward pass, and longer documents gain little
STEPS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)  # lengths of groups


@dataclass(frozen=True)
class _Rows:
    """Where tokens of a pack lie in the groups.

    Attributes:
        tokens: for each row of all groups laid end to end the token that lies there; of padding any token.
        places: (T,), the row of each token.
        padding: the rows of padding.
        copies: (documents, P), the rows of the shared tokens in each document that sees them; None without any.
    """

    tokens: NDArray[np.int64]
    places: NDArray[np.int64]
    padding: NDArray[np.int64]
    copies: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class _Group:
    """Documents of one padded length: their number, their queries, and the keys that each of them sees before."""

    documents: int
    length: int
    before: int


class _Spread(torch.autograd.Function):
    """(T, heads, D) to (rows, heads, D): each token to its row, shared ones to several."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: _Rows) -> Tensor:
        ctx.rows = rows
        return _take(values, rows.tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        rows: _Rows = ctx.rows
        result = _take(grads[0], rows.places)
        if rows.copies is not None:
            copies = (
                _take(grads[0], rows.copies.ravel()).unflatten(0, rows.copies.shape).sum(dim=0, dtype=torch.float32)
            )
            result[: len(copies)] += copies
        return result, None


class _Collect(torch.autograd.Function):
    """(rows, heads, D) back to (T, heads, D); padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: _Rows) -> Tensor:
        ctx.rows = rows
        return _take(values, rows.places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        rows: _Rows = ctx.rows
        return _take(grads[0], rows.tokens).index_fill_(0, torch.from_numpy(rows.padding), 0), None


def _take(values: Tensor, rows: NDArray[np.int64]) -> Tensor:
    return values.index_select(0, torch.from_numpy(rows))


def attend_short(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], shared: int, scale: float, window: int | None
) -> Tensor:
    """Attention of documents that lie end to end.

    Args:
        query: (T, H, D); ``key`` and ``value``: (T, K, D), H a multiple of K.
        lengths: tokens of each document; with shared tokens, they are the first one.
        shared: tokens at the beginning of the pack that all documents see before their own.
        scale: what logits are multiplied by.
        window: tokens that each token sees, itself included; None for all before it.

    Returns:
        (T, H, D) in the type of the values.
    """
    groups, queries, keys = _layout(tuple(lengths), shared)
    parts_q = _Spread.apply(query, queries).split([g.documents * g.length for g in groups])
    sizes = [g.documents * (g.before + g.length) for g in groups]
    parts_k, parts_v = (_Spread.apply(x, keys).split(sizes) for x in (key, value))
    results = [
        _one_group(q, k, v, group, scale, window)
        for q, k, v, group in zip(parts_q, parts_k, parts_v, groups, strict=True)
    ]
    result: Tensor = _Collect.apply(torch.cat(results), queries)
    return result


def _one_group(q: Tensor, k: Tensor, v: Tensor, group: _Group, scale: float, window: int | None) -> Tensor:
    """(N * L, H, D) queries, (N * (P + L), K, D) keys and values; (N * L, H, D)."""
    count, length, heads, kinds = group.documents, group.length, q.shape[1], k.shape[1]
    repeats = heads // kinds
    q = q.view(count, length, kinds, repeats, -1).permute(0, 2, 3, 1, 4).reshape(count * kinds, repeats * length, -1)
    k, v = (x.view(count, -1, kinds, x.shape[-1]).transpose(1, 2).flatten(0, 1) for x in (k, v))
    seen = torch.from_numpy(_seen(length, group.before, window)).to(q.dtype).repeat(repeats, 1)
    weights = torch.baddbmm(seen, q, k.transpose(1, 2), alpha=scale).softmax(dim=-1)
    result = (weights @ v).view(count, kinds, repeats, length, -1)
    return result.permute(0, 3, 1, 2, 4).reshape(count * length, heads, -1)


@lru_cache(maxsize=16)
def _seen(length: int, before: int, window: int | None) -> NDArray[np.float32]:
    """(L, P + L): 0 where a query sees a key, minus infinity elsewhere."""
    distance = np.arange(length)[:, None] + before - np.arange(before + length)[None, :]
    seen = (distance >= 0) & (distance < (window or before + length))
    return np.where(seen, 0.0, -np.inf).astype(np.float32)


@lru_cache(maxsize=4)
def _layout(lengths: tuple[int, ...], shared: int) -> tuple[tuple[_Group, ...], _Rows, _Rows]:
    """Groups of documents, and where queries and keys lie in them; asked for by every layer of a pack."""
    starts = [0, *itertools.accumulate(lengths)]
    kinds: dict[tuple[int, int], list[int]] = {}  # keys before, padded length -> documents
    for number, length in enumerate(lengths):
        before = shared if number > 0 else 0
        kinds.setdefault((before, next(step for step in STEPS if step >= length)), []).append(number)
    groups = tuple(_Group(len(members), length, before) for (before, length), members in sorted(kinds.items()))
    members = [kinds[group.before, group.length] for group in groups]
    documents = [[(starts[i], lengths[i]) for i in numbers] for numbers in members]
    return groups, _rows(groups, documents, with_shared=False), _rows(groups, documents, with_shared=True)


def _rows(groups: Sequence[_Group], documents: Sequence[Sequence[tuple[int, int]]], with_shared: bool) -> _Rows:
    tokens: list[int] = []
    padding: list[int] = []
    copies: list[list[int]] = []
    places: dict[int, int] = {}
    for group, members in zip(groups, documents, strict=True):
        for start, length in members:
            if with_shared and group.before:
                copies.append(list(range(len(tokens), len(tokens) + group.before)))
                tokens.extend(range(group.before))
            places.update(zip(range(start, start + length), itertools.count(len(tokens))))
            tokens.extend(range(start, start + length))
            padding.extend(range(len(tokens), len(tokens) + group.length - length))
            tokens.extend([start] * (group.length - length))
    return _Rows(
        np.array(tokens),
        np.array([places[token] for token in sorted(places)]),
        np.array(padding, dtype=np.int64),
        np.array(copies) if copies else None,
    )
