"""Causal attention of short documents on a CPU in half precision: those of similar length lie side by side.

Shapes: T tokens of a pack, H query heads, K key/value heads, R = H / K, D head size, P shared tokens, L padded length
of a group of documents, N its documents.

A CPU's fused attention takes documents one at a time, and its backward pass is slow: for documents of 64 to 512 tokens
twice to five times as long as plain products (docs/results/throughput.md). Here documents are padded to groups of one
length (:mod:`sengi.model.document_groups`), and each group is two batched products with a softmax between them. Padding
lies behind a document, so no token of it sees any, and its own results are dropped. Logits are rounded to half
precision before the softmax, which computes in float32, as in transformers' eager attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sengi.model.document_groups import Group, Layout, Rows, lay_out

LONGEST = 512  # tokens: the squares are kept for the backward pass, and longer documents gain little


class _SideBySide(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None
    ) -> Tensor:
        q = _gather(query.flatten(0, 1), layout.queries.sources)
        k, v = (_gather(x.flatten(0, 1), layout.keys.sources) for x in (key, value))
        result, shares = q.new_empty(len(q), v.shape[1]), []
        for group, own, seen in _parts(layout, query.shape[1], key.shape[1]):
            hidden = _hidden(group, query.shape[1] // key.shape[1], window, q.dtype)
            shares.append(torch.baddbmm(hidden, own(q), seen(k).transpose(1, 2), alpha=scale).softmax(dim=-1))
            torch.bmm(shares[-1], seen(v), out=own(result))
        ctx.save_for_backward(q, k, v, *shares)
        ctx.layout, ctx.scale, ctx.heads, ctx.kinds = layout, scale, query.shape[1], key.shape[1]
        return _gather(result, layout.queries.places).unflatten(0, (-1, query.shape[1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        q, k, v, *shares = ctx.saved_tensors
        layout: Layout = ctx.layout
        of_result = _gather(grads[0].flatten(0, 1), layout.queries.sources)
        of_result.index_fill_(0, torch.from_numpy(layout.queries.padding), 0)
        of_q, of_k, of_v = (torch.empty_like(x) for x in (q, k, v))
        for (_, own, seen), share in zip(_parts(layout, ctx.heads, ctx.kinds), shares, strict=True):
            torch.bmm(share.transpose(1, 2), own(of_result), out=seen(of_v))
            of_share = own(of_result) @ seen(v).transpose(1, 2)
            of_logits = torch._softmax_backward_data(of_share, share, -1, share.dtype).mul_(ctx.scale)
            torch.bmm(of_logits, seen(k), out=own(of_q))
            torch.bmm(of_logits.transpose(1, 2), own(q), out=seen(of_k))
        back = (_back(of_q, layout.queries), _back(of_k, layout.keys), _back(of_v, layout.keys))
        sizes = (ctx.heads, ctx.kinds, ctx.kinds)
        return *(x.unflatten(0, (-1, size)) for x, size in zip(back, sizes, strict=True)), None, None, None


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
    layout = lay_out(tuple(lengths), shared, query.shape[1], key.shape[1])
    result: Tensor = _SideBySide.apply(query, key, value, layout, scale, window)
    return result


def _gather(rows: Tensor, numbers: NDArray[np.int64]) -> Tensor:
    return rows.index_select(0, torch.from_numpy(numbers))


def _back(gradient: Tensor, rows: Rows) -> Tensor:
    """Gradient of the rows of the groups to that of the rows of the pack; of shared tokens the sum of its copies."""
    result = _gather(gradient, rows.places)
    if rows.copies is not None:
        copies = _gather(gradient, rows.copies.ravel()).unflatten(0, (len(rows.copies), -1))
        total = copies.sum(dim=0, dtype=torch.float32)
        result[: len(total)] += total
    return result


def _parts(layout: Layout, heads: int, kinds: int) -> Iterator[tuple[Group, _Part, _Part]]:
    """Each group with its part of the rows of queries and of those of keys, as (N * K, tokens, D)."""
    of_queries = of_keys = 0
    for group in layout.groups:
        batch, keys = group.documents * kinds, group.before + group.length
        own = _Part(of_queries, batch, heads // kinds * group.length)
        seen = _Part(of_keys, batch, keys)
        yield group, own, seen
        of_queries, of_keys = own.stop, seen.stop


class _Part:
    """Some of the rows of a tensor as a batch of matrices."""

    def __init__(self, start: int, batch: int, rows: int) -> None:
        self.start, self.stop, self.shape = start, start + batch * rows, (batch, rows)

    def __call__(self, values: Tensor) -> Tensor:
        return values[self.start : self.stop].unflatten(0, self.shape)


def _hidden(group: Group, repeats: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """(R * L, P + L): 0 where a query sees a key, minus infinity elsewhere."""
    if dtype == torch.bfloat16:  # the upper half of a float32
        bits = _upper_halves(group.length, group.before, repeats, window)
        return torch.from_numpy(bits).view(torch.bfloat16)
    return torch.from_numpy(_mask(group.length, group.before, repeats, window)).to(dtype)


@lru_cache(maxsize=64)
def _upper_halves(length: int, before: int, repeats: int, window: int | None) -> NDArray[np.uint16]:
    return (_mask(length, before, repeats, window).view(np.uint32) >> 16).astype(np.uint16)


def _mask(length: int, before: int, repeats: int, window: int | None) -> NDArray[np.float32]:
    distance = np.arange(length)[:, None] + before - np.arange(before + length)[None, :]
    seen = (distance >= 0) & (distance < (window or before + length))
    return np.tile(np.where(seen, 0.0, -np.inf).astype(np.float32), (repeats, 1))
