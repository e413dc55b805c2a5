"""Causal attention of one document written out as squares, for tests."""

from __future__ import annotations

import torch
from torch import Tensor


def tensors(tokens: int, heads: int, kinds: int, size: int = 8) -> list[Tensor]:
    """Float64 queries (tokens, heads, size), keys and values (tokens, kinds, size) that want gradients."""
    torch.manual_seed(tokens)
    return [torch.randn(tokens, n, size, dtype=torch.float64, requires_grad=True) for n in (heads, kinds, kinds)]


def attend_dense(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """(L, H, D) queries, (L, K, D) keys and values; (L, H, D)."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    position = torch.arange(len(q))
    distance = position[:, None] - position[None, :]
    seen = (distance >= 0) & (distance < (window or len(q)))
    logits = torch.einsum("qhd,khd->hqk", q, k) * scale
    return torch.einsum("hqk,khd->qhd", logits.masked_fill(~seen, float("-inf")).softmax(-1), v)
