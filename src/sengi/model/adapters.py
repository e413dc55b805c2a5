"""Folders that hold a LoRA adapter instead of a model: found, checked and put on their base.

    adapter_config.json, adapter_model.safetensors      as peft writes them
    base_model.json                                     ours: what the base was, so that another one is refused

The arithmetic is peft's. What is checked before it runs: the weights are safetensors (peft would unpickle anything
else), the base is the one that the adapter was trained on, and every tensor of the file has found its place (peft
fills what is missing with zeros and only logs it).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sengi.errors import ModelError, class_and_text
from sengi.model.find import find_model
from sengi.model.fingerprint import files_fingerprint
from sengi.model.inspect import check_safetensors, inspect_model_folder, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE = "base_model.json"
FINGERPRINT = "fingerprint"  # key of BASE: files_fingerprint of the base


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter instead of a model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration of a LoRA adapter.

    Raises:
        ModelError: it is not there, is another kind of adapter, or its weights are not safetensors.
    """
    config = read_config(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{folder / CONFIG}: peft_type is {config.get('peft_type')!r}; only LORA adapters are loaded, "
            "merge another kind into its base first (peft: merge_and_unload())"
        )
    if config.get("megatron_config"):  # peft then imports the module that megatron_core names
        raise ModelError(f"{folder / CONFIG}: key 'megatron_config' would run code; remove it")
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder}: no {WEIGHTS}; adapter_model.bin is a pickle, save the adapter as safetensors")
    check_safetensors(folder / WEIGHTS)
    return config


def base_of(folder: Path) -> str:
    """The model that an adapter belongs on, by its own word.

    Raises:
        ModelError: adapter_config.json does not name one.
    """
    base = read_adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{folder / CONFIG}: base_model_name_or_path is missing; name the base with pretrained=BASE,peft={folder}"
        )
    return base


def base_folder(folder: Path, *, trust_remote_code: bool = False) -> Path:
    """The folder of the model that an adapter belongs on, held against what the adapter was trained on.

    Args:
        folder: an adapter folder.
        trust_remote_code: let the base run code of its author.

    Raises:
        ModelError: the base is gone, or has changed since the adapter was trained.
    """
    name = base_of(folder)
    try:
        base = find_model(name, trust_remote_code)
        if not is_adapter(base):
            inspect_model_folder(base, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise ModelError(f"{folder}: the base of this adapter cannot be used: {error}") from error
    if is_adapter(base):
        raise ModelError(f"{folder}: its base {name} is an adapter, too; merge that one first (sengi export --merge)")
    if (folder / BASE).is_file():
        wanted = str(read_config(folder / BASE).get(FINGERPRINT))
        if wanted != (found := files_fingerprint(base)):
            raise ModelError(
                f"{folder}: was trained on a model of fingerprint {wanted[:12]}, but {base} has {found[:12]}: another "
                f"model, or changed since; put the right one there, or write its place into {CONFIG}"
            )
    return base


def has_tokenizer(folder: Path) -> bool:
    """Whether an adapter brings a tokenizer of its own; else it uses its base's."""
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def config_folder(folder: Path) -> Path:
    """The folder with the config.json of a model or adapter: an adapter's architecture is its base's."""
    return base_folder(folder) if is_adapter(folder) else folder


def merge_adapter(model: PreTrainedModel, folder: Path, vocabulary: int) -> PreTrainedModel:
    """Add a LoRA adapter to the weights of its base.

    Args:
        model: the base; it is changed.
        folder: the adapter.
        vocabulary: tokens of the tokenizer; a base with fewer gets rows for them, which the adapter must fill.

    Returns:
        A plain model with the sum of both, in evaluation mode.

    Raises:
        ModelError: peft is missing, or adapter and base do not fit.
    """
    adapted = _adapted(model, folder, vocabulary)
    try:
        with warnings.catch_warnings(action="ignore"):
            merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # weights that are no numbers
        raise ModelError(f"{folder}: the adapter does not fit its base: {class_and_text(error)}") from error
    return merged.eval()


def put_adapter(model: PreTrainedModel, folder: Path, vocabulary: int) -> PreTrainedModel:
    """Put a LoRA adapter on its base without rounding it; arguments and errors as of :func:`merge_adapter`.

    A float32 base is merged. A sum in half precision would lose most of a small adapter, whose change of a weight is
    less than half a unit in its last place: there peft's layers stay, in float32, beside those of the base.

    Returns:
        A model of the base's class, in evaluation mode.
    """
    if is_merged(model):
        return merge_adapter(model, folder, vocabulary)
    beside: PreTrainedModel = _adapted(model, folder, vocabulary).get_base_model()
    return beside.eval()


def is_merged(base: PreTrainedModel) -> bool:
    """Whether :func:`put_adapter` adds an adapter to the weights of this base."""
    import torch

    return all(parameter.dtype == torch.float32 for parameter in base.parameters())


def _adapted(model: PreTrainedModel, folder: Path, vocabulary: int) -> Any:
    """peft's model of base and adapter, once every tensor of the adapter has found its place."""
    from safetensors import safe_open

    from sengi.model.quiet import quiet_transformers

    read_adapter_config(folder)
    peft = import_peft(f"{folder}: a LoRA adapter")
    embeddings: Any = model.get_input_embeddings()
    if vocabulary > embeddings.weight.shape[0]:
        model.resize_token_embeddings(vocabulary)
    with safe_open(folder / WEIGHTS, "pt") as file:
        saved = set(file.keys())
    try:
        with quiet_transformers(), warnings.catch_warnings(action="ignore"):
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
            placed = set(peft.get_peft_model_state_dict(adapted))
    except Exception as error:  # whatever peft raises where shapes or names do not fit
        raise ModelError(f"{folder}: the adapter does not fit its base: {class_and_text(error)}") from error
    if wrong := sorted(saved ^ placed):
        raise ModelError(f"{folder}: {len(wrong)} tensors of the adapter and its base do not match, first {wrong[0]}")
    return adapted


def import_peft(what: str) -> Any:
    """The module peft.

    Args:
        what: needs it; begins the message where it is not installed.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{what} needs peft; pip install 'sengi[lora]', or merge it into its base where peft is "
            "(sengi export --merge)"
        ) from error
    return peft


def adapter_facts(folder: Path) -> dict[str, str]:
    """SHA-256 of an adapter's two files, which tell it apart from every other on the same base."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)}


def base_record(name: str, fingerprint: str) -> bytes:
    """The content of base_model.json."""
    return (json.dumps({"name_or_path": name, FINGERPRINT: fingerprint}, indent=2) + "\n").encode()
