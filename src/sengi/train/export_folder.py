"""``sengi export``: a checkpoint becomes a folder for others, without the state that only training needs.

An adapter stays an adapter in peft's layout, or is added to the weights of its base. Adding happens in float32, on the
base as it is stored: a model that was trained on a base in 4 bits is merged into the whole one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from sengi import storage
from sengi.errors import InputError
from sengi.model.adapters import base_folder, base_of, is_adapter
from sengi.model.inspect import read_config
from sengi.model.load import load_model, load_tokenizer
from sengi.model.resolve import resolve_model
from sengi.train.checkpoint import PREFIX, STATE
from sengi.train.export import export_files, weight_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_folder(
    source: Path, output: Path, *, merge: bool = False, dtype: Literal["auto", "float32"] | None = None
) -> Path:
    """Write a model or adapter folder; on return it is safe on disk and sealed with a manifest.

    Args:
        source: a run folder, whose last checkpoint is taken; a checkpoint; or any adapter folder.
        output: the folder to make.
        merge: add an adapter to its base.
        dtype: of merged weights: ``auto`` (or None) is the type of the base's.

    Returns:
        The folder that was exported.

    Raises:
        InputError: nothing to export, ``output`` exists, or the options do not fit what ``source`` holds.
        CheckpointError: the checkpoint does not verify.
        StorageError: the disk failed; ``output`` was not made.
    """
    folder = _last_checkpoint(source)
    if (folder / storage.MANIFEST).exists():
        storage.verify(folder)
    resolve_model(str(folder))
    if merge and not is_adapter(folder):
        raise InputError(f"--merge: {folder} is a whole model, there is nothing to merge; leave --merge out")
    if dtype is not None and not merge:
        raise InputError(f"--dtype {dtype}: an export without --merge keeps the weights as they are; leave --dtype out")
    storage.create_folder(output.absolute().parent)
    stage = storage.begin(output)
    try:
        fill: Callable[[Path, storage.Stage], None] = (
            (lambda folder, stage: _write_merged(folder, stage, dtype)) if merge else _write_copy
        )
        fill(folder, stage)
        storage.publish(stage, output, {"exported": folder.name})
    except BaseException:
        if stage.path.exists():
            storage.remove(stage.path)
        raise
    return folder


def _last_checkpoint(source: Path) -> Path:
    if not (source / "recipe.yaml").is_file():
        return source
    folders = storage.published(source, PREFIX)
    if not folders:
        raise InputError(f"{source}: no checkpoint in it to export; train first, or name a checkpoint or adapter")
    return folders[-1]


def _write_copy(folder: Path, stage: storage.Stage) -> None:
    """Every file but those of the training state and of the seal, as it is."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in (storage.MANIFEST, storage.SEAL, STATE):
            stage.write(name.as_posix(), path.read_bytes())


def _write_merged(folder: Path, stage: storage.Stage, dtype: Literal["auto", "float32"] | None) -> None:
    base = base_folder(folder)
    stored = read_config(base / "config.json")
    kind = DTYPES.get(str(stored.get("dtype") or stored.get("torch_dtype")), torch.float32)
    kind = torch.float32 if dtype == "float32" else kind
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token = load_tokenizer(base).eos_token  # both ends are known then, as in a whole model's checkpoint
    model = load_model(folder)
    for name, content in export_files(model, tokenizer, kind).items():
        stage.write(name, content)
    for name, pieces in weight_files(model, _weights(model, kind)):
        stage.write(name, *pieces)
    stage.write("README.md", _card(base_of(folder), folder))


def _weights(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, tied weights once."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    persistent = set(model.state_dict())
    found |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: t.detach().to(dtype) if t.is_floating_point() else t.detach() for name, t in found.items()}


def _card(base: str, folder: Path) -> bytes:
    lines = ["---", f"base_model: {json.dumps(base)}", "library_name: transformers", "pipeline_tag: text-generation"]
    lines += ["tags:", "- sft", "- sengi", "---", "", f"# {folder.resolve().parent.name}, {folder.name}, merged", ""]
    return "\n".join([*lines, f"`{base}` with a LoRA adapter added to its weights by Sengi.", ""]).encode()
