"""One optimizer step: micro-batches in, one exact gradient, one update.

The gradient is that of the mean over the whole step (token or sample mean), whatever the number of ranks and
micro-batches: each target's weight is fixed before the first forward pass, from counts that all ranks know.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sengi.data.packing import StepPacks
from sengi.data.packs import Pack, make_pack, to_device
from sengi.data.store import TokenStore
from sengi.errors import NonFiniteError
from sengi.recipe import Recipe
from sengi.train.distributed import World
from sengi.train.optimizer import clear_gradients, clip_gradients, gradient_norm, keeps_gradients
from sengi.train.out_of_memory import MemoryGuard, of_fixed_size
from sengi.train.sharding import reduce_gradients


@dataclass(frozen=True)
class StepResult:
    """What a step measured: loss in nats, gradient norm before clipping, seconds spent waiting for data.

    ``half_grad_norm`` is the norm of the mean gradient of the first half of the samples and ``half_share`` their share
    of the step's weight: two norms of one step tell signal from noise (statistics/gradient_noise.py). None where no
    micro-batch ends there (``StepPacks.half``).
    ``computed_tokens`` are those that went through the layers, on all ranks: fewer than the step's, as packs are lean;
    ``computed_squares`` the squared lengths of what was attended to (``Pack.squared_lengths``).
    """

    loss: float
    grad_norm: float
    data_seconds: float
    half_grad_norm: float | None = None
    half_share: float | None = None
    computed_tokens: int = 0
    computed_squares: int = 0


def target_weights(pack: Pack, reduction: str, step_targets: int, step_samples: int) -> Tensor:
    """Weight of each target in the step's mean, float32 (S,).

    Args:
        pack: a micro-batch.
        reduction: ``token`` or ``sample``.
        step_targets: supervised targets of the whole step, over all ranks and micro-batches.
        step_samples: samples of the whole step.
    """
    if reduction == "token":
        return torch.full((len(pack.targets),), 1.0 / step_targets)
    return (1.0 / (pack.counts[pack.document].double() * step_samples)).float()


def run_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    store: TokenStore,
    samples: NDArray[np.int64],
    packs: StepPacks,
    recipe: Recipe,
    world: World,
    autocast: torch.dtype | None,
    guard: MemoryGuard | None = None,
    *,
    before_micro_batch: Callable[[int, Sequence[int]], None],
    reduce_each: bool = False,
) -> StepResult:
    """Forward, backward and update of one step.

    Args:
        samples: store indices of the step.
        packs: their distribution over ranks and micro-batches.
        autocast: dtype of the computation, or None for float32.
        guard: of this model, made once; None for a single step.
        before_micro_batch: called with the micro-batch number and its store indices; may raise to give up the
            step, in which case weights and optimizer are as before it.
        reduce_each: whether gradients cross the network with every micro-batch, not once a step.

    Raises:
        NonFiniteError: loss or gradient norm is NaN or infinite on any rank; the optimizer did not step.
        StepOutOfMemory: a micro-batch did not fit on some rank (raised on all); the optimizer did not step.
    """
    guard = guard or MemoryGuard(model, world)
    step_targets = int(store.supervised[samples].sum())
    # loss, computed tokens, weight of the first half, computed squares
    total = torch.zeros(4, dtype=torch.float64, device=world.device)
    of_fixed_size(partial(clear_gradients, optimizer, world), "the gradients")
    data_seconds = 0.0
    mine = packs.ranks[world.rank]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    half_norm = None
    work = partial(_forward_backward, model, world, autocast)
    idle = partial(work, make_pack([]).to(world.device), torch.zeros(0, device=world.device))
    lean = bool(getattr(model, "padding_free", False))  # else each document is a call of its own
    for number, members in enumerate(mine):
        before_micro_batch(number, samples[members].tolist())
        started = time.perf_counter()
        pack = make_pack(store.samples(samples[members]), lean)
        weights = target_weights(pack, recipe.loss_reduction, step_targets, len(samples))
        if packs.half is not None and number < packs.half:
            total[2] += weights.double().sum()
        data_seconds += time.perf_counter() - started
        pack, weights = pack.to(world.device), to_device(weights, world.device)
        reduce_gradients(model, number + 1 in (packs.half, len(mine)), reduce_each)
        tokens = int(store.lengths[samples[members]].sum())
        total[0] += guard.micro_batch(partial(work, pack, weights), idle, (tokens, len(members)))
        if len(members):
            total[1] += pack.input_ids.numel()
            total[3] += pack.squared_lengths
        if number + 1 == packs.half:
            half_norm = gradient_norm(parameters, world)  # read at the end: no wait for the GPU
    if world.size > 1:
        guard.agree()
    loss, computed, half_share, squares = world.sum(total).tolist()
    result = StepResult(
        loss,
        float(gradient_norm(parameters, world)),
        data_seconds,
        float(half_norm) / half_share if half_norm is not None else None,
        half_share if half_norm is not None else None,
        int(computed),
        int(squares),
    )
    if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
        clear_gradients(optimizer, world)
        raise NonFiniteError(f"loss is {result.loss}, gradient norm is {result.grad_norm}")
    clip_gradients(parameters, result.grad_norm, recipe.max_grad_norm)
    of_fixed_size(optimizer.step, "the optimizer's update")
    if not keeps_gradients(world):  # kept memory is cleared once, before it is used
        clear_gradients(optimizer, world)
    return result


def _forward_backward(
    model: nn.Module, world: World, autocast: torch.dtype | None, pack: Pack, weights: Tensor
) -> Tensor:
    """Add a micro-batch's gradients; its share of the step's loss, float64 scalar."""
    with torch.autocast(world.device.type, autocast) if autocast is not None else contextlib.nullcontext():
        # FSDP averages gradients over ranks; the weights already hold the step's mean, hence the factor
        loss, nll = model(pack, weights * world.size)
    loss.backward()
    return (nll.double() * weights.double()).sum()
