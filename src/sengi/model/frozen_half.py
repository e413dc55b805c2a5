"""A frozen model that stays in memory as it is stored, in half precision, and is tried in float32 all the same.

Read in float32, the base of an adapter needs twice the memory for a minute that it needs for the whole run: 32 GB in
place of 16 at 8B. Whether its packing is right can be told in float32 only (:func:`sengi.model.supervised.prepare`), so
while it is tried each layer of it is widened as it is called. Nothing is rounded: every half-precision number is a
float32 number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sengi.model.checkpointing import transformer_layers
from sengi.model.inspect import weight_files

STORED = {torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors call them
FLOAT32 = "F32"


def stored_types(folder: Path) -> set[str]:
    """Names that the weight files of a checked model folder have for the types of their floating-point tensors."""
    kinds: set[str] = set()
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            kinds |= {str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    return {kind for kind in kinds if "F" in kind}


def can_stay(folder: Path, dtype: torch.dtype) -> bool:
    """Whether reading a model in ``dtype`` changes none of its numbers.

    Args:
        folder: a checked model folder.
        dtype: that the run computes in.

    Returns:
        False where a floating-point tensor of the files has another type, and for families that make numbers of their
        own in the type of their weights (Gemma's embedding scale): read in float32 they are other numbers.
    """
    if stored_types(folder) != {STORED.get(dtype)}:
        return False
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return all(buffer.dtype != dtype for buffer in lm.buffers())


@contextlib.contextmanager
def computing_in_float32(lm: PreTrainedModel) -> Iterator[None]:
    """Let a model in half precision compute in float32: all that lies outside its layers, and one layer at a time."""
    held: dict[nn.Parameter, Tensor] = {}
    hooks = []

    def widen(parameters: list[nn.Parameter]) -> None:
        for p in parameters:
            held.setdefault(p, p.data)
            p.data = p.data.float()

    def narrow(parameters: list[nn.Parameter]) -> None:
        for p in parameters:
            p.data = held.pop(p, p.data)

    outside = {p for p in lm.parameters() if p.dtype in STORED}
    for layer in transformer_layers(lm):
        if own := [p for p in layer.parameters() if p.dtype in STORED]:
            outside -= set(own)
            hooks.append(layer.register_forward_pre_hook(lambda *_, own=own: widen(own)))
            hooks.append(layer.register_forward_hook(lambda *_, own=own: narrow(own), always_call=True))
    widen(list(outside))  # at once: some families ask for the type of the head before they call it
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        narrow(list(held))


@contextlib.contextmanager
def looking_like_float32(lm: PreTrainedModel) -> Iterator[None]:
    """Let half-precision weights pass for float32 ones without numbers, for code that asks for their type only."""
    held = {p: p.data for p in lm.parameters() if p.dtype in STORED}
    for p, data in held.items():
        p.data = data.new_empty(1, dtype=torch.float32).expand(data.shape)
    try:
        yield
    finally:
        for p, data in held.items():
            p.data = data
