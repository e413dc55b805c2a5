"""The input embedding whose gradient is added where it belongs, for training in one process.

Shapes: T tokens of a pack, V vocabulary, E hidden size.

torch makes a gradient of the whole (V, E) with T rows that are not zero, and adds that: as much memory as the embedding
itself, and time that grows with the vocabulary and not with the pack.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding as look_up


class _AddedAtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding_idx = weight, padding_idx
        return look_up(ids, weight, padding_idx)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ids, rows = ids.flatten(), grads[0].flatten(0, -2)
        if ctx.padding_idx is not None:
            rows = rows.masked_fill((ids == ctx.padding_idx)[:, None], 0)
        ctx.weight.grad.index_add_(0, ids, rows)
        return None, None, None


def add_gradient_at_once(embedding: nn.Module) -> None:
    """Let the backward pass of a plain embedding add its rows to the weight's gradient, where there is one to add to.

    Embeddings of other classes (Gemma 3 scales them) stay as they are. The backward pass then gives no gradient of the
    weight: sharding, which collects gradients there, would miss it.
    """
    if _is_plain(embedding):
        embedding.forward = partial(_embed, embedding)


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq


def _embed(embedding: Any, ids: Tensor) -> Tensor:
    if embedding.weight.grad is None or not torch.is_grad_enabled():
        return look_up(ids, embedding.weight, embedding.padding_idx)
    result: Tensor = _AddedAtOnce.apply(ids, embedding.weight, embedding.padding_idx)
    return result
