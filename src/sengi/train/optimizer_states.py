"""AdamW's moments in fewer bytes, and how each kind is named in a checkpoint.

    adamw_torch_fused    float32    torch's own
    adamw_anyprecision   bfloat16   moments are rounded to nearest; the update itself is computed in float32
    adamw_bnb_8bit       8 bits     bitsandbytes, in blocks of 256 with a scale each (arXiv 2110.02861)

Weights are float32 in every case.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sengi.errors import InputError
from sengi.recipe import Recipe

MOMENTS = ("exp_avg", "exp_avg_sq")
BNB_MOMENTS = ("state1", "state2")
BNB_SCALES = ("absmax1", "absmax2")  # of the blocks; small parameters keep float32 moments and have none


class BFloat16AdamW(torch.optim.Optimizer):
    """AdamW whose moments are kept in bfloat16.

    Rounding to nearest loses changes below 1/256 of a value: the second moment could not follow a decay of 0.999 (each
    step changes it by at most a thousandth), which is why the recipe refuses ``adam_beta2`` above 0.99 here.

    Args:
        groups: parameter groups with their own ``weight_decay``.
        lr: learning rate; ``betas`` and ``eps`` as in torch.optim.AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "moment_dtype": torch.bfloat16}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        for kind in MOMENTS:
            if kind not in state:
                state[kind] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] = state.get("step", torch.tensor(0.0)) + 1
        count, (beta1, beta2) = float(state["step"]), group["betas"]
        weight, grad, first, second = (_local(t) for t in (parameter, parameter.grad, *(state[k] for k in MOMENTS)))
        mean = torch.lerp(first.float(), grad, 1 - beta1)
        square = second.float().mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        first.copy_(mean)
        second.copy_(square)
        square.sqrt_().div_((1 - beta2**count) ** 0.5).add_(group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(mean, square, value=-group["lr"] / (1 - beta1**count))


def bnb_adamw(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """bitsandbytes' 8-bit AdamW with the recipe's constants.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    check_optimizer(recipe, 1)
    from bitsandbytes.optim import AdamW8bit

    betas = (recipe.adam_beta1, recipe.adam_beta2)
    optimizer: torch.optim.Optimizer = AdamW8bit(
        groups, lr=recipe.learning_rate, betas=betas, eps=recipe.adam_epsilon, weight_decay=0.0
    )
    return optimizer


def check_optimizer(recipe: Recipe, world_size: int) -> None:
    """Refuse an ``optim`` that cannot run here, before anything is read.

    Raises:
        InputError: a package is missing, or 8-bit moments are asked for on several processes.
    """
    if recipe.optim != "adamw_bnb_8bit":
        return
    if world_size > 1:
        raise InputError(
            f"optim is adamw_bnb_8bit and there are {world_size} processes: its blocks of 256 values do not follow the "
            "rows that FSDP2 splits by; set optim: adamw_anyprecision, or run without torchrun"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("optim adamw_bnb_8bit needs bitsandbytes; pip install 'sengi[qlora]'")


def state_kinds(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> tuple[str, ...]:
    """Names of the tensors that ``optimizer`` keeps for ``parameter`` and a checkpoint must hold."""
    if not _is_bnb(optimizer):
        return MOMENTS
    begun(optimizer, parameter)
    return BNB_MOMENTS + tuple(kind for kind in BNB_SCALES if kind in optimizer.state[parameter])


def begun(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The state of ``parameter``, made of zeros where the optimizer has not stepped yet."""
    state: dict[str, Any] = optimizer.state[parameter]
    if _is_bnb(optimizer):
        if "state1" not in state:
            made: Any = optimizer
            made.check_overrides()
            made.initialized = True
            for number, group in enumerate(optimizer.param_groups):
                for place, member in enumerate(group["params"]):
                    if member is parameter:
                        made.init_state(group, parameter, number, place)
        return optimizer.state[parameter]
    for kind in MOMENTS:
        if kind not in state:
            state[kind] = torch.zeros_like(
                parameter, dtype=optimizer.defaults.get("moment_dtype"), memory_format=torch.preserve_format
            )
    return state


def set_step(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, step: Tensor) -> None:
    """Say how many steps were done, in the form that this optimizer keeps it in.

    Args:
        step: float32 scalar of a checkpoint.
    """
    if _is_bnb(optimizer):
        optimizer.state[parameter]["step"] = int(step)
    elif "moment_dtype" in optimizer.defaults:
        optimizer.state[parameter]["step"] = step.clone()
    else:
        optimizer.state[parameter]["step"] = step.to(_local(parameter).device, copy=True)  # fused AdamW's place


def _is_bnb(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer).__module__.startswith("bitsandbytes")


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
