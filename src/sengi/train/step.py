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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from sengi.data.packing import StepPacks
from sengi.data.packs import Pack, make_pack
from sengi.data.store import TokenStore
from sengi.errors import NonFiniteError
from sengi.recipe import Recipe
from sengi.train.distributed import World
from sengi.train.optimizer import clip_gradients, gradient_norm


@dataclass(frozen=True)
class StepResult:
    """What a step measured: loss in nats, gradient norm before clipping, seconds spent waiting for data."""

    loss: float
    grad_norm: float
    data_seconds: float


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
    *,
    before_micro_batch: Callable[[int, Sequence[int]], None],
) -> StepResult:
    """Forward, backward and update of one step.

    Args:
        samples: store indices of the step.
        packs: their distribution over ranks and micro-batches.
        autocast: dtype of the computation, or None for float32.
        before_micro_batch: called with the micro-batch number and its store indices; may raise to give up the
            step, in which case weights and optimizer are as before it.

    Raises:
        NonFiniteError: loss or gradient norm is NaN or infinite on any rank; the optimizer did not step.
    """
    step_targets = int(store.supervised[samples].sum())
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    optimizer.zero_grad(set_to_none=True)
    data_seconds = 0.0
    mine = packs.ranks[world.rank]
    for number, members in enumerate(mine):
        before_micro_batch(number, samples[members].tolist())
        started = time.perf_counter()
        pack = make_pack(store.samples(samples[members]))
        weights = target_weights(pack, recipe.loss_reduction, step_targets, len(samples))
        pack, weights = pack.to(world.device), weights.to(world.device)
        data_seconds += time.perf_counter() - started
        _reduce_gradients_now(model, number == len(mine) - 1)
        with _autocast(world.device, autocast):
            # FSDP averages gradients over ranks; the weights already hold the step's mean, hence the factor
            loss, nll = model(pack, weights * world.size)
        loss.backward()
        total += (nll.double() * weights.double()).sum()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    result = StepResult(float(world.sum(total)), float(gradient_norm(parameters, world)), data_seconds)
    if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(f"loss is {result.loss}, gradient norm is {result.grad_norm}")
    clip_gradients(parameters, result.grad_norm, recipe.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return result


def _reduce_gradients_now(model: nn.Module, last: bool) -> None:
    """Gradients cross the network once a step, after the last micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[None]:
    return torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()
