"""What a user calls a model becomes a local folder of safetensors, found and checked."""

from __future__ import annotations

import logging
from pathlib import Path

from sengi.model.adapters import base_folder, is_adapter
from sengi.model.find import find_model
from sengi.model.inspect import inspect_model_folder, inspect_tokenizer_files


def resolve_model(name: str, *, trust_remote_code: bool = False) -> Path:
    """Find a model, fetch or convert it if it must be, and check its folder.

    Args:
        name: a folder of safetensors (used where it lies; it may hold a LoRA adapter), a GGUF file, ``smollm2-135m``,
            or an id on the Hugging Face hub (``owner/name``). A folder or file that exists wins over a hub id.
        trust_remote_code: let the folder's configuration name code of its author, and fetch that code from the hub.

    Returns:
        A folder with config.json, tokenizer files and safetensors, or of an adapter whose base is in order.

    Raises:
        ModelError: nothing of that name, or the folder is not safe to load.

    Example:
        >>> resolve_model("no-such-model")
        Traceback (most recent call last):
        sengi.errors.ModelError: model 'no-such-model': ...
    """
    folder = find_model(name, trust_remote_code)
    if is_adapter(folder):
        inspect_tokenizer_files(folder, trust_remote_code=trust_remote_code)
        base_folder(folder, trust_remote_code=trust_remote_code)
        return folder
    for warning in inspect_model_folder(folder, trust_remote_code=trust_remote_code):
        logging.getLogger("sengi.model").warning(warning)
    return folder
