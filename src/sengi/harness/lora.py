"""A LoRA adapter on its base: merged into the weights, so that it is asked like any other model.

The arithmetic is peft's. What is checked before it runs: the weights are safetensors (peft would unpickle anything
else), every tensor of the file has found its place (peft fills what is missing with zeros and only logs it).
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sengi.errors import ModelError
from sengi.model.load import one_line, quiet_transformers

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter instead of a model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


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


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration of a LoRA adapter.

    Raises:
        ModelError: it is not there, is another kind of adapter, or its weights are not safetensors.
    """
    try:
        config = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG}: cannot be read: {one_line(error)}") from error
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{folder / CONFIG}: peft_type is {config.get('peft_type')!r}; only LORA adapters are loaded, "
            "merge another kind into its base first (peft: merge_and_unload())"
        )
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder}: no {WEIGHTS}; adapter_model.bin is a pickle, save the adapter as safetensors")
    return config


def merge_adapter(model: PreTrainedModel, folder: Path, vocabulary: int) -> PreTrainedModel:
    """Add a LoRA adapter to the weights of its base.

    Args:
        model: the base; it is changed.
        folder: the adapter.
        vocabulary: tokens of the tokenizer; a base with fewer gets rows for them, which the adapter must fill.

    Returns:
        A plain model with the sum of both.

    Raises:
        ModelError: peft is missing, or adapter and base do not fit.
    """
    read_adapter_config(folder)
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{folder}: a LoRA adapter needs peft; pip install peft, or merge it into its base "
            "(peft: merge_and_unload()) and give the merged folder"
        ) from error
    from safetensors import safe_open

    embeddings: Any = model.get_input_embeddings()
    if vocabulary > embeddings.weight.shape[0]:
        model.resize_token_embeddings(vocabulary)
    with safe_open(folder / WEIGHTS, "pt") as file:
        saved = set(file.keys())
    try:
        with quiet_transformers(), warnings.catch_warnings(action="ignore"):
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
            placed = set(peft.get_peft_model_state_dict(adapted))
            merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # whatever peft raises where shapes or names do not fit
        raise ModelError(f"{folder}: the adapter does not fit its base: {one_line(error)}") from error
    if wrong := sorted(saved ^ placed):
        raise ModelError(f"{folder}: {len(wrong)} tensors of the adapter and its base do not match, first {wrong[0]}")
    return merged
