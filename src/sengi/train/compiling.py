"""torch.compile in a run: whether it pays, and compiling before the first step.

A kernel is made for the sizes it meets first and then used for all. So that a run that is continued computes the same
bits, they are made on packs that are the same at every start, not on those that come next.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from sengi.conversation import Sample
from sengi.data.packs import make_pack
from sengi.model.checkpointing import Dial
from sengi.recipe import Recipe
from sengi.train.distributed import World
from sengi.train.optimizer import clear_gradients
from sengi.train.sharding import reduce_gradients

# On 2 CPU cores compiling a Llama took 10 to 20 s and saved 6% of a step in bfloat16 (docs/results/throughput.md)
PAYS_FROM = 600.0  # seconds of training
TOKENS = 1024  # of a pack to compile with, at most: what is made for a few tokens uses one core only
DOCUMENT = 64  # tokens of its documents
BEGINNING = 16  # tokens that they share, in one of two packs


def decide(
    recipe: Recipe,
    earlier: bool | None,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float | None,
    dial: Dial,
) -> tuple[bool, str]:
    """``torch_compile`` of a run, and the reason.

    Args:
        recipe: what was asked for.
        earlier: what the run that is continued does; None for a new one.
        device: of the training.
        dtype: of the computation.
        seconds: forecast of the training, or None.
        dial: activation checkpointing.
    """
    if recipe.torch_compile is False:
        return False, "the recipe says so"
    if dial == "selective":
        return False, "gradient_checkpointing: selective chooses by operation, and compiled code has none"
    if recipe.load_in_4bit:
        return False, "4-bit layers are not compiled"
    if recipe.torch_compile is True:
        return True, "the recipe says so"
    if earlier is not None:
        return earlier, "as the run began"
    if device.type != "cpu":
        return False, "not measured on a GPU yet; set it to true to try"
    if dtype == torch.float32:
        return False, "compiled code is slower in float32 on a CPU"
    pays = seconds is not None and seconds >= PAYS_FROM
    return pays, f"compiling pays from about {PAYS_FROM / 60:.0f} minutes of training"


def compile_now(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World,
    autocast: torch.dtype | None,
    budget: int,
    vocab_size: int,
) -> float:
    """Make the code of all layers, forward and backward, and leave no gradient behind; all ranks call this together.

    Args:
        model: with compiled layers, sharded or not.
        budget: ``max_tokens_per_device``.
        vocab_size: of the model.

    Returns:
        The seconds it took.
    """
    started = time.perf_counter()
    count = max(2, min(TOKENS, budget) // DOCUMENT)
    numbers = np.arange(count * DOCUMENT, dtype=np.int32).reshape(count, DOCUMENT) * 7919 % max(2, vocab_size)
    numbers[:, 0] = np.arange(count) % max(2, vocab_size)  # no beginning in common
    mask = np.zeros(DOCUMENT, np.uint8)
    mask[-1] = 1
    alike = numbers.copy()
    alike[:, :BEGINNING] = np.arange(BEGINNING) % max(2, vocab_size)
    for rows in (numbers, alike):
        pack = make_pack([Sample(row, mask) for row in rows], lean=True).to(world.device)
        reduce_gradients(model, whole=True, each=False)
        with torch.autocast(world.device.type, autocast, enabled=autocast is not None):
            loss, _ = model(pack, torch.zeros(len(pack.targets), device=world.device))
        loss.backward()
    clear_gradients(optimizer, world)
    return time.perf_counter() - started
