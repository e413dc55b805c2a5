"""Checkpoints: what a run needs to go on exactly where it was, beside a model folder that others can load.

    checkpoint-<step>/
      config.json, model.safetensors, tokenizer.json, ...      Hugging Face layout (export.py)
      training_state/layout.json                               where each tensor's rows lie
      training_state/rank-<r>-<n>.safetensors                  this rank's rows of master weights and moments
      manifest.json, manifest.json.sha256                      hashes of all of it, written last (storage.py)

There is no pickle. A tensor is stored as ranges of rows, so a checkpoint of W ranks loads on any other number.
There is no random state to keep: the data order is a pure function of the step, and dropout is off.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from sengi import storage
from sengi.errors import CheckpointError, StorageError
from sengi.train.distributed import World
from sengi.train.export import SHARD_BYTES, weight_files
from sengi.train.optimizer import local

FORMAT = 1
STATE = "training_state"
PREFIX = "checkpoint-"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World,
    *,
    export_dtype: torch.dtype,
    files: dict[str, bytes],
    facts: dict[str, Any],
) -> Path:
    """Publish ``checkpoint-<step>``; on return it is safe on disk. All ranks call this together.

    Args:
        model: the (sharded) supervised model; its parameters are float32.
        export_dtype: type of the weights in the Hugging Face files.
        files: the other files of the folder, name -> content.
        facts: kept in the manifest and returned by :func:`load`.

    Raises:
        StorageError: a write failed on some rank (the same error on all); no checkpoint was published.
    """
    folder = run / f"{PREFIX}{step}"
    stage_path = world.on_first(lambda: str(storage.begin(folder).path))
    stage = storage.Stage(Path(stage_path))
    try:
        for module in model.modules():
            if isinstance(module, FSDPModule):  # a forward pass without a backward leaves parts of it unsharded
                module.reshard()
        names = _names(model)
        full = _full_parameters(model, world)

        def write() -> dict[str, Any]:
            if world.first:
                for name, content in files.items():
                    stage.write(name, content)
                for name, content in weight_files(full, export_dtype):
                    stage.write(name, content)
            layout: dict[str, Any] = {}
            for number, (rows, tensors) in enumerate(_local_state(optimizer, names)):
                file = f"rank-{world.rank:05d}-{number:05d}.safetensors"
                stage.write(f"{STATE}/{file}", safetensors_bytes(tensors))
                layout[file] = rows
            return {"records": stage.records, "layout": layout}

        parts = world.together(write)

        def seal() -> None:
            layout = {file: rows for part in parts for file, rows in part["layout"].items()}
            stage.write(f"{STATE}/layout.json", json.dumps({"format": FORMAT, "rows": layout}, indent=1).encode())
            for part in parts:
                stage.records.update(part["records"])
            storage.publish(stage, folder, {"format": FORMAT, "step": step, "world_size": world.size, **facts})

        world.on_first(seal)
    except BaseException:
        if world.first and stage.path.exists():
            _try_to_remove(stage.path)
        raise
    return folder


def newest_valid(run: Path, world: World, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose every byte verifies, and its manifest; a bad one is set aside, aloud.

    Raises:
        CheckpointError: there are checkpoints, and none of them verifies.
        StorageError: one cannot be read just now; nothing is set aside, because it may be in order.
    """

    def look() -> list[Any] | None:
        bad: list[str] = []
        for folder in reversed(storage.published(run, PREFIX)):
            try:
                facts = storage.verify(folder)
                if f"{PREFIX}{facts.get('step')}" != folder.name:
                    raise CheckpointError(f"{folder}: holds step {facts.get('step')}; the folder was renamed")
                return [str(folder), facts]
            except CheckpointError as error:
                bad.append(str(error))
                kept = storage.set_aside(folder)
                say(f"corrupt checkpoint: {error}. Kept as {kept.name}; falling back to the one before")
        # also on the next call: a job that restarts by itself must not start over and cut the log
        if aside := sorted(path.name for path in run.glob(f".quarantine-{PREFIX}*")):
            raise CheckpointError(
                f"{bad[0] if bad else run}; no other checkpoint is left: restore one, or remove {', '.join(aside)} to "
                "start over"
            )
        return None

    found = world.on_first(look)
    return (Path(found[0]), found[1]) if found is not None else None


def prune(run: Path, keep: int | None, spared: Collection[int]) -> None:
    """Remove checkpoints but the newest ``keep`` (None: all) and those of the ``spared`` steps; rank 0 only."""
    for old in storage.published(run, PREFIX)[:-keep] if keep else []:
        if int(old.name.removeprefix(PREFIX)) not in spared:
            storage.remove(old)


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> None:
    """Fill master weights and optimizer from a verified checkpoint, whatever world size wrote it.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """

    def read() -> None:
        state = folder / STATE
        layout = json.loads((state / "layout.json").read_text(encoding="utf-8"))["rows"]
        names = _names(model)
        for name, parameter in names:
            wanted = _rows(parameter)
            for kind in ("param", *MOMENTS):
                values = _read_rows(state, layout, f"{kind}.{name}", wanted, tuple(local(parameter).shape))
                if kind == "param":
                    with torch.no_grad():
                        local(parameter).copy_(values)
                else:
                    _moment(optimizer, parameter, kind).copy_(values)
        saved = _read_rows(state, layout, "step", None, ())
        for _, parameter in names:
            optimizer.state[parameter]["step"] = saved.to(local(parameter).device, copy=True)  # fused AdamW's place

    world.together(read)


def _names(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trainable parameters under the names that the Hugging Face model gives them; tied weights once."""
    return [(name.removeprefix("lm."), p) for name, p in model.named_parameters() if p.requires_grad]


def _full_parameters(model: nn.Module, world: World) -> dict[str, Tensor]:
    """All parameters and persistent buffers, whole and on the CPU of rank 0; all ranks take part."""
    full: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if world.first:
            full[name.removeprefix("lm.")] = whole.detach().cpu()
    persistent = set(model.state_dict().keys())
    for name, buffer in model.named_buffers():
        if world.first and name in persistent:
            full[name.removeprefix("lm.")] = buffer.detach().cpu()
    return full


def _local_state(
    optimizer: torch.optim.Optimizer, names: list[tuple[str, nn.Parameter]]
) -> Iterator[tuple[dict[str, list[int]], dict[str, Tensor]]]:
    """This rank's rows, a file's worth at a time: name -> [first, last) and name -> tensor."""
    step = next((s["step"] for s in optimizer.state.values() if "step" in s), torch.tensor(0.0))
    rows: dict[str, list[int]] = {"step": [0, 0]}
    tensors: dict[str, Tensor] = {"step": step.detach().cpu().float().reshape(())}
    size = 0
    for name, parameter in names:
        for kind in ("param", *MOMENTS):
            value = parameter if kind == "param" else _moment(optimizer, parameter, kind)
            part = local(value).detach().cpu().contiguous()
            if size + part.nbytes > SHARD_BYTES and size:
                yield rows, tensors
                rows, tensors, size = {}, {}, 0
            rows[f"{kind}.{name}"] = list(_rows(parameter))
            tensors[f"{kind}.{name}"] = part
            size += part.nbytes
    yield rows, tensors


def _rows(parameter: Tensor) -> tuple[int, int]:
    """The rows [first, last) of dimension 0 that this rank holds; (0, 0) stands for a scalar."""
    if not isinstance(parameter, DTensor):
        return (0, parameter.shape[0]) if parameter.ndim else (0, 0)
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return int(offset[0]), int(offset[0]) + int(shape[0])


def _moment(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, kind: str) -> Tensor:
    """This rank's part of an Adam moment; made of zeros where the optimizer has not stepped yet."""
    state = optimizer.state[parameter]
    if kind not in state:
        state[kind] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return local(state[kind])


def _read_rows(
    state: Path, layout: dict[str, Any], key: str, wanted: tuple[int, int] | None, shape: tuple[int, ...]
) -> Tensor:
    """Rows of a tensor, put together from the files that hold them."""
    pieces: list[tuple[int, Tensor]] = []
    for file, rows in layout.items():
        if key not in rows:
            continue
        first, last = rows[key]
        with safe_open(state / file, framework="pt") as tensors:
            if wanted is None or (first, last) == (0, 0):
                return tensors.get_tensor(key)
            a, b = max(first, wanted[0]), min(last, wanted[1])
            if a < b:
                pieces.append((a, tensors.get_slice(key)[a - first : b - first]))
    values = torch.cat([piece for _, piece in sorted(pieces, key=lambda p: p[0])]) if pieces else torch.empty(shape)
    if tuple(values.shape) != shape or (not pieces and values.numel()):
        raise CheckpointError(
            f"{state}: {key} has shape {tuple(values.shape)} here and {shape} in the model; "
            "this checkpoint belongs to another model"
        )
    return values


def _try_to_remove(folder: Path) -> None:
    with contextlib.suppress(StorageError):  # the disk is already failing; the next start sweeps it up
        storage.remove(folder)
