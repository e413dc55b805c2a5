"""Transformer layers through torch.compile, applied from outside.

Each class of layer is compiled once, for any number of tokens (``dynamic=True``), and all layers of the class share the
code. FlashAttention's kernel is one operation of it, so that a layer is one piece on a GPU. Other kernels of attention
stay outside: they are chosen by lengths of documents, and a compiler gains nothing on them. Elementwise work between
the matrix products becomes one loop in place of several (norms, gated units, rotary positions and their casts), which
also keeps fewer results for the backward pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from sengi.model.attention import NAME, attend, document_attention

VARIANTS = 64  # of a function, before torch gives up on it: kinds of layers, packs with shared tokens and without


def compile_layers(layers: Iterable[nn.Module]) -> None:
    """Let ``layers`` compute with compiled code where gradients are wanted; before they are checkpointed.

    Nothing is compiled before the first call. A part that does not compile runs as it is (:func:`parts_left_plain`).
    Without gradients (held-out loss) the plain code runs: another compilation would take longer than it saves.

    Args:
        layers: the transformer layers of a padding-free model.
    """
    # imported here and not above: torch needs a second to load its compiler
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.suppress_errors = True
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # else a traceback for each of them
    # the casts before the kernel are compiled with what comes before them
    AttentionInterface.register(NAME, partial(document_attention, kernel=torch.compiler.disable(attend)))
    of_class: dict[type[nn.Module], Callable[..., Any]] = {}
    for layer in layers:
        kind = type(layer)
        compiled = of_class.setdefault(kind, torch.compile(kind.forward, dynamic=True))
        layer.forward = partial(_forward, layer, compiled)


def _forward(layer: nn.Module, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    code = compiled if torch.is_grad_enabled() else type(layer).forward
    return code(layer, *args, **kwargs)


def parts_left_plain() -> int:
    """Functions of this process that torch.compile was asked for and that did not compile."""
    from torch._dynamo.utils import counters

    return counters["frames"]["total"] - counters["frames"]["ok"]


def can_compile(device: torch.device) -> str:
    """Why torch.compile does not work here, in a line; empty where it does. Tries it on a few numbers."""

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    import torch._dynamo

    try:
        with torch._dynamo.config.patch(suppress_errors=False):
            torch.compile(double)(torch.ones(8, device=device))
    except Exception as error:  # compilers fail in their own ways: none installed, no Triton, no place to write
        return (str(error) or type(error).__name__).strip().splitlines()[0]
    return ""
