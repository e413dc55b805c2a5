"""Activation checkpointing: layers give up what their backward pass needs and compute it again, applied from outside.

    none        everything is kept
    selective   results of matrix products and of attention are kept; norms, activations and products are computed again
    full        only a layer's input is kept; its forward pass runs a second time

Nothing random happens in a layer (dropout is off), so a second forward pass gives the same bits, and so do gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Dial = Literal["none", "selective", "full"]
DIALS: tuple[Dial, ...] = ("none", "selective", "full")  # from the fastest to the smallest


def transformer_layers(model: nn.Module) -> nn.ModuleList:
    """The longest list of modules in the model: its stack of layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def checkpoint_layers(layers: Iterable[nn.Module], dial: Dial) -> None:
    """Make ``layers`` keep less for their backward pass.

    The forward function of each module is wrapped, not the module: names of parameters stay, and FSDP's hooks run
    around it.

    Args:
        layers: the transformer layers of a model.
        dial: what they keep.
    """
    if dial == "none":
        return
    context: dict[str, Any] = {"context_fn": _selective_contexts} if dial == "selective" else {}
    for layer in layers:
        layer.forward = _again(layer.forward, context)


def _again(forward: Callable[..., Any], context: dict[str, Any]) -> Callable[..., Any]:
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        # no random state to restore: dropout is off
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **context, **kwargs)

    return checkpointed


def _selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(partial(_policy, _kept_operations()))


def _policy(kept: frozenset[Any], _context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in kept else CheckpointPolicy.PREFER_RECOMPUTE


def _kept_operations() -> frozenset[Any]:
    """Linear layers and fused attention; products inside an unfused attention (bmm) are squares of the length."""
    aten = torch.ops.aten
    kept = {
        aten.mm.default,
        aten.addmm.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
    varlen = getattr(torch.ops.torch_attn, "_varlen_attn", None)  # known once torch.nn.attention.varlen is imported
    return frozenset(kept | ({varlen.default} if varlen is not None else set()))
