"""Causal attention of a long document on a CPU in half precision: some queries at a time, nothing squared is kept.

Shapes: L tokens, H query heads, K key/value heads, R = H / K, D head size.

The backward pass computes the probabilities of a block of queries again, so memory grows with the length and not with
its square. A CPU's fused attention does the same, in 1.4 to 2 times the time (docs/results/throughput.md). Logits
are rounded to half precision before the softmax, as for short documents (:mod:`sengi.model.short_documents`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = 256  # queries at a time


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale, ctx.window = scale, window
        keys, values = (x.transpose(0, 1).contiguous() for x in (key, value))
        results = []
        for own, seen in _blocks(len(query), window):
            shares = _shares(_folded(query[own], len(keys)), keys[:, seen], own, seen, scale, window)
            results.append(_unfolded(shares @ values[:, seen], query.shape[1]))
        return torch.cat(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        query, key, value = ctx.saved_tensors
        scale, window = ctx.scale, ctx.window
        keys, values = (x.transpose(0, 1).contiguous() for x in (key, value))
        of_query = []
        of_keys, of_values = (torch.zeros_like(x, dtype=torch.float32) for x in (keys, values))
        for own, seen in _blocks(len(query), window):
            some, grad = (_folded(x[own], len(keys)) for x in (query, grads[0]))
            shares = _shares(some, keys[:, seen], own, seen, scale, window)
            of_values[:, seen] += shares.transpose(1, 2) @ grad
            of_shares = grad @ values[:, seen].transpose(1, 2)
            of_logits = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            of_keys[:, seen].add_(of_logits.transpose(1, 2) @ some, alpha=scale)
            of_query.append(_unfolded(of_logits @ keys[:, seen], query.shape[1]).mul_(scale))
        back = (x.transpose(0, 1).to(key.dtype) for x in (of_keys, of_values))
        return torch.cat(of_query), *back, None, None


def attend_long(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """Attention of one document.

    Args:
        query: (L, H, D); ``key`` and ``value``: (L, K, D), H a multiple of K.
        scale: what logits are multiplied by.
        window: tokens that each token sees, itself included; None for all before it.

    Returns:
        (L, H, D) in the type of the values.
    """
    result: Tensor = _Blocks.apply(query, key, value, scale, window)
    return result


def _blocks(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Queries at a time, and the keys that at least one of them sees."""
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        yield slice(start, stop), slice(0 if window is None else max(0, start - window + 1), stop)


def _shares(query: Tensor, keys: Tensor, own: slice, seen: slice, scale: float, window: int | None) -> Tensor:
    """(K, R * queries, keys): how much each query takes of each key; they sum to 1."""
    logits = torch.baddbmm(query.new_empty(()), query, keys.transpose(1, 2), beta=0, alpha=scale)
    rows = torch.arange(own.start, own.stop)[:, None]
    # all keys before the block are seen where no window ends
    columns = torch.arange(own.start if window is None else seen.start, seen.stop)[None, :]
    unseen = (columns > rows) | (columns <= rows - (window or seen.stop + 1))
    per_head = logits.view(len(keys), -1, own.stop - own.start, logits.shape[2])
    per_head[..., -columns.shape[1] :].masked_fill_(unseen, float("-inf"))
    return logits.softmax(dim=-1)


def _folded(values: Tensor, kinds: int) -> Tensor:
    """(L, H, D) to (K, R * L, D): the query heads of a key head one below the other."""
    length, heads, size = values.shape
    return values.view(length, kinds, heads // kinds, size).permute(1, 2, 0, 3).reshape(kinds, -1, size)


def _unfolded(values: Tensor, heads: int) -> Tensor:
    """(K, R * L, D) back to (L, H, D)."""
    kinds, _, size = values.shape
    return values.view(kinds, heads // kinds, -1, size).permute(2, 0, 1, 3).reshape(-1, heads, size)
