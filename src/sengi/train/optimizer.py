"""AdamW over float32 master weights, the rate of each step, and the global gradient norm."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sengi.recipe import Recipe
from sengi.train.distributed import World
from sengi.train.optimizer_states import BFloat16AdamW, bnb_adamw


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with the recipe's constants and moments; weight decay on matrices only, not on norms and biases."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    betas = (recipe.adam_beta1, recipe.adam_beta2)
    if recipe.optim == "adamw_bnb_8bit":
        return bnb_adamw(filled, recipe)
    if recipe.optim == "adamw_anyprecision":
        return BFloat16AdamW(filled, lr=recipe.learning_rate, betas=betas, eps=recipe.adam_epsilon)
    return torch.optim.AdamW(filled, lr=recipe.learning_rate, betas=betas, eps=recipe.adam_epsilon, fused=True)


def learning_rate(recipe: Recipe, step: int, num_steps: int) -> float:
    """Rate of step ``step`` (from 1) of ``num_steps``: linear warm-up, then constant, cosine or linear to 0.

    A pure function, so that a resumed run needs no scheduler state. The first step after a warm-up of w steps
    has the peak rate; with cosine and linear the rate would reach 0 one step after the last.
    """
    warmup = recipe.warmup_count(num_steps)
    if step <= warmup:
        return recipe.learning_rate * step / (warmup + 1)
    progress = (step - 1 - warmup) / max(1, num_steps - warmup)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[recipe.lr_scheduler_type]
    return recipe.learning_rate * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` for the next step of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def keeps_gradients(world: World) -> bool:
    """Whether the memory of gradients stays between steps: in one process on a CPU (:func:`clear_gradients`)."""
    return world.size == 1 and world.device.type == "cpu"


def clear_gradients(optimizer: torch.optim.Optimizer, world: World) -> None:
    """Set all gradients back before a step.

    One process on a CPU keeps their memory, as zeros: made anew in each step they would lie among the activations of
    its first micro-batch, and the heap would grow by what no longer fits between them (docs/memory.md). Elsewhere they
    are released. A trained weight that no sample uses then has a gradient of zero, not none: weight decay reaches it.
    """
    keep = keeps_gradients(world)
    optimizer.zero_grad(set_to_none=not keep)
    for parameter in (p for group in optimizer.param_groups for p in group["params"] if keep):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter], world: World) -> Tensor:
    """Global L2 norm of the gradients of all ranks' shards, float64 scalar; NaN and infinity come through."""
    grads = [p.grad for p in parameters if p.grad is not None]
    parts = [local(g) for g in grads]
    parts = [g for g in parts if g.numel()]
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    if parts:
        total = torch.stack(torch._foreach_norm(parts)).double().square().sum()
    if (sharded := next((g for g in grads if isinstance(g, DTensor)), None)) is not None:
        world.sum(total)
        if sharded.device_mesh.ndim == 2:  # hybrid sharding: each machine has a copy of every gradient
            total /= sharded.device_mesh.size(0)
    return total.sqrt()


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], norm: float, max_norm: float) -> None:
    """Scale gradients down to ``max_norm`` where ``norm`` is above it; 0 turns clipping off."""
    if max_norm > 0 and norm > max_norm:
        grads = [local(p.grad) for p in parameters if p.grad is not None]
        torch._foreach_mul_(grads, max_norm / norm)
