"""FSDP2: parameters, gradients and optimizer state split over the ranks, applied to the model from outside."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sengi.model.supervised import SupervisedModel
from sengi.train.distributed import World


def shard(model: SupervisedModel, world: World) -> nn.Module:
    """Shard ``model`` in place: each transformer layer on its own, then the rest (embedding, norm, head).

    Parameters stay float32; bfloat16 computation comes from autocast, so that one process and many compute
    the same thing.
    """
    if world.size == 1:
        return model
    mesh = init_device_mesh(world.device.type, (world.size,))
    layers = transformer_layers(model)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def transformer_layers(model: nn.Module) -> nn.ModuleList:
    """The longest list of modules in the model: its stack of layers."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())
