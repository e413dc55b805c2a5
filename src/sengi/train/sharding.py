"""FSDP2: parameters, gradients and optimizer state split over the ranks, applied to the model from outside.

Parameters stay float32; bfloat16 computation comes from autocast, so that one process and many compute the same thing
(docs/decisions/005-precision.md, docs/distributed.md).
"""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from sengi.errors import RecipeError
from sengi.model.checkpointing import transformer_layers
from sengi.model.lora import whole_on_every_rank
from sengi.model.supervised import SupervisedModel
from sengi.recipe import Recipe
from sengi.train.distributed import World, ranks_here

WHOLE_GRADIENTS = 0.25  # share of a device's memory that whole gradients may take before each micro-batch reduces them


def place(model: SupervisedModel, device: torch.device, mesh: DeviceMesh | None, recipe: Recipe) -> None:
    """Move ``model`` to this rank's device in place: whole, or with a mesh this rank's shards of it.

    Each transformer layer is moved and split on its own, then the rest (embedding, norm, head): beside the shards a
    device holds one layer at a time. Nothing is sent to other ranks.

    Args:
        model: whole, on the CPU.
        device: of this rank.
        mesh: of :func:`device_mesh`.
        recipe: its ``fsdp_`` keys say how.
    """
    if mesh is None:
        model.to(device)
        return
    whole = whole_on_every_rank(model)
    for layer in transformer_layers(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=recipe.fsdp_reshard_after_forward, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)


def device_mesh(world: World, recipe: Recipe) -> DeviceMesh | None:
    """All ranks in a row; with hybrid sharding a row a machine: columns hold the same rows of every parameter.

    Args:
        world: the processes of the run, which call this together.
        recipe: its ``fsdp_sharding_strategy``.

    Returns:
        The mesh; None for one process, which shares with nobody.

    Raises:
        RecipeError: hybrid sharding of a world whose machines do not have equal numbers of ranks.
    """
    if world.size == 1:
        return None
    here = world.gather(ranks_here())
    if recipe.fsdp_sharding_strategy == "full_shard" or here[0] == world.size:
        return init_device_mesh(world.device.type, (world.size,))
    if len(set(here)) > 1:
        raise RecipeError(
            f"fsdp_sharding_strategy is hybrid_shard, but the machines have {sorted(set(here))} processes; start the "
            "same number on each, or set full_shard"
        )
    return init_device_mesh(world.device.type, (world.size // here[0], here[0]), mesh_dim_names=("replicate", "shard"))


def reshard(model: nn.Module) -> None:
    """Have every parameter in its shards: a forward pass without a backward leaves some whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def reduces_each_micro_batch(recipe: Recipe, world: World, parameters: int) -> bool:
    """Whether gradients are reduced at every micro-batch, because whole ones would take too much memory.

    Args:
        recipe: ``fsdp_gradient_reduction`` decides, where it is not ``auto``.
        world: the processes of the run; all call this together.
        parameters: trained parameters of the whole model; a whole gradient is 4 bytes each.
    """
    if world.size == 1 or recipe.fsdp_gradient_reduction != "auto":
        return recipe.fsdp_gradient_reduction == "micro_batch"
    return world.any(4 * parameters > WHOLE_GRADIENTS * _memory(world.device))


def _memory(device: torch.device) -> int:
    """Bytes that this rank's device has in all; a machine's memory is shared by its ranks."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks_here()


def reduce_gradients(model: nn.Module, whole: bool, each: bool) -> None:
    """Say whether the next backward pass sends gradients over the network.

    Args:
        model: sharded or not.
        whole: the gradient of all ranks is wanted after the next micro-batch: the step's last, or its first half's.
        each: every micro-batch reduces, within a machine where sharding is hybrid; between machines only these two.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(whole or each)
        model.set_requires_all_reduce(whole)
