"""What a checkpoint holds, taken from the model and the optimizer while all ranks stand still.

With ``copy`` it is a copy in the memory of the CPU, which a thread writes while training goes on; without, it looks at
the live tensors and nothing is copied that need not be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

from sengi.train.distributed import World
from sengi.train.optimizer import local
from sengi.train.optimizer_states import begun, state_kinds
from sengi.train.sharding import reshard


@dataclass(frozen=True)
class Snapshot:
    """What this rank writes of a checkpoint.

    Attributes:
        lm: the model, which knows the layout of its family's files.
        weights: name -> whole tensor in the type of the Hugging Face files and on the CPU; empty but on rank 0.
        state: name -> this rank's rows of master weights and moments.
        rows: name -> the rows [first, last) that they are.
    """

    lm: PreTrainedModel
    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    rows: dict[str, tuple[int, int]]


def take(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World,
    export_dtype: torch.dtype,
    copy: Callable[[str, Tensor], Tensor] | None = None,
) -> Snapshot:
    """What a checkpoint of this moment holds. All ranks call this together.

    Args:
        model: the (sharded) supervised model; its parameters are float32.
        export_dtype: type of the weights in the Hugging Face files.
        copy: makes the copy on the CPU of a tensor of a name; without it the snapshot looks at the live tensors,
            and nothing may train until it is written.
    """
    reshard(model)
    state, rows = _local_state(model, optimizer)
    if copy is not None:
        state = {name: copy(name, tensor) for name, tensor in state.items()}
    lm: Any = model.lm
    return Snapshot(lm, _whole_weights(model, world, export_dtype, state, copy), state, rows)


def snapshot_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, world: World, export_dtype: torch.dtype) -> int:
    """Bytes of CPU memory that this rank's copy takes: 12 a parameter it holds, on rank 0 the exported weights, too.

    All ranks call this together.
    """
    reshard(model)  # parameters that are whole would get moments as large
    state, _ = _local_state(model, optimizer)
    size = sum(_host_bytes(tensor.nbytes, tensor.is_cuda) for tensor in state.values())
    if world.first and not (world.size == 1 and export_dtype == torch.float32):
        size += sum(_host_bytes(p.numel() * export_dtype.itemsize, p.is_cuda) for _, p in exported(model))
    return size


def _host_bytes(size: int, page_locked: bool) -> int:
    """What a copy of so many bytes takes: PyTorch locks pages by the next power of two."""
    return 1 << (size - 1).bit_length() if page_locked and size else size


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trainable parameters under the names that the Hugging Face model gives them; tied weights once."""
    return [(name.removeprefix("lm."), p) for name, p in model.named_parameters() if p.requires_grad]


def trains_adapter(model: nn.Module) -> bool:
    """Whether some parameters are frozen: then the others are an adapter, and a checkpoint holds nothing else."""
    return not all(parameter.requires_grad for parameter in model.parameters())


def exported(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What the Hugging Face files hold, under the model's own names: every parameter, or those of the adapter."""
    adapter = trains_adapter(model)
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad or not adapter]


def _whole_weights(
    model: nn.Module,
    world: World,
    dtype: torch.dtype,
    state: dict[str, Tensor],
    copy: Callable[[str, Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    """Parameters and persistent buffers in their saved type, whole and on the CPU of rank 0; all take part."""
    weights: dict[str, Tensor] = {}
    if trains_adapter(model):
        dtype = torch.float32
    for long_name, parameter in exported(model):
        name, value = long_name.removeprefix("lm."), parameter.detach().to(dtype)
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if not world.first:
            continue
        kept = state.get(f"param.{name}")
        if kept is not None and (kept.dtype, kept.shape, kept.device.type) == (dtype, value.shape, "cpu"):
            weights[name] = kept  # one process in float32: the master weights themselves
        else:
            weights[name] = copy(name, value) if copy is not None else value.cpu()
    if trains_adapter(model):
        return weights
    persistent = set(model.state_dict().keys())
    for long_name, buffer in model.named_buffers():
        if world.first and long_name in persistent:
            value = buffer.detach().to(dtype) if buffer.is_floating_point() else buffer.detach()
            weights[long_name.removeprefix("lm.")] = value.cpu()  # no buffer changes while a model trains
    return weights


def _local_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """This rank's part of master weights and moments, live, and the rows [first, last) that it is; by name.

    Empty where another rank holds the same (hybrid sharding).
    """
    step = next((s["step"] for s in optimizer.state.values() if "step" in s), torch.tensor(0.0))
    state, rows = {"step": torch.as_tensor(step).detach().float().reshape(())}, {"step": (0, 0)}
    for name, parameter in trained(model):
        if is_second_copy(parameter):
            return {}, {}
        for kind in ("param", *state_kinds(optimizer, parameter)):
            value = parameter if kind == "param" else begun(optimizer, parameter)[kind]
            state[f"{kind}.{name}"] = local(value).detach()
            rows[f"{kind}.{name}"] = rows_of(value)
    return state, rows


def rows_of(parameter: Tensor) -> tuple[int, int]:
    """The rows [first, last) of dimension 0 that this rank holds; (0, 0) stands for a scalar."""
    if not isinstance(parameter, DTensor):
        return (0, parameter.shape[0]) if parameter.ndim else (0, 0)
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return int(offset[0]), int(offset[0]) + int(shape[0])


def is_second_copy(parameter: Tensor) -> bool:
    """Whether an earlier node holds the same rows (the first dimension of a mesh of two counts the copies)."""
    return (
        isinstance(parameter, DTensor)
        and parameter.device_mesh.ndim == 2
        and parameter.device_mesh.get_local_rank(0) > 0
    )
