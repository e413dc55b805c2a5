"""A checked folder becomes a tokenizer and a model; every load in Sengi goes through here."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sengi.errors import ModelError, class_and_text
from sengi.model import adapters
from sengi.model.fingerprint import files_fingerprint
from sengi.model.inspect import inspect_model_folder, inspect_tokenizer_files
from sengi.model.quiet import quiet_transformers


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, without network and without foreign code.

    Args:
        folder: a folder with tokenizer.json, or with tokenizer.model (needs the extra ``sengi[sentencepiece]``), or an
            adapter without either, whose base has one.
        trust_remote_code: run the tokenizer code of the model's author.

    Raises:
        ModelError: no tokenizer, a package for it is missing, or its files cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder}: not a folder; give the folder that holds tokenizer.json")
    if adapters.is_adapter(folder) and not adapters.has_tokenizer(folder):
        folder = adapters.base_folder(folder, trust_remote_code=trust_remote_code)
    inspect_tokenizer_files(folder, trust_remote_code=trust_remote_code)
    if not (folder / "tokenizer.json").exists() and (folder / "tokenizer.model").exists():
        missing = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
        if missing:
            raise ModelError(
                f"{folder}: has only tokenizer.model, which needs {' and '.join(missing)}; "
                "pip install 'sengi[sentencepiece]'"
            )
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # whatever a malformed file makes transformers or tokenizers raise
        raise ModelError(f"{folder}: the tokenizer cannot be loaded: {class_and_text(error)}") from error
    if len(tokenizer) == 0:
        raise ModelError(f"{folder}: no tokenizer files; copy tokenizer.json of the model into it")
    return tokenizer


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    quantization_config: Any = None,
) -> PreTrainedModel:
    """Load a causal language model from safetensors, without network and without foreign code.

    Args:
        folder: a model folder; it passes :func:`sengi.model.inspect.inspect_model_folder` first. Of an adapter folder
            the base is loaded and the adapter added to its weights.
        dtype: type of the weights in memory; None keeps the one they are stored in.
        attn_implementation: name of an attention function that transformers knows; None takes the best that it has
            for this family (Gemma 2 has no "sdpa").
        trust_remote_code: run the model code of the model's author.
        quantization_config: quantizer of transformers that is applied while the weights are read.

    Returns:
        The model in evaluation mode, on the CPU (quantized: where the quantizer puts it), every parameter read from
        the files.

    Raises:
        ModelError: the folder does not pass, or weights are missing, of another shape or left over.
    """
    folder = Path(folder)
    if adapters.is_adapter(folder):
        return _load_merged(folder, dtype, attn_implementation, trust_remote_code)
    inspect_model_folder(folder, trust_remote_code=trust_remote_code)
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype="auto" if dtype is None else dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                quantization_config=quantization_config,
                output_loading_info=True,
            )
    except Exception as error:  # whatever a malformed config makes transformers raise
        raise ModelError(f"{folder}: the model cannot be loaded: {class_and_text(error)}") from error
    model, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    # transformers fills missing weights with random numbers and only logs it.
    for problem, cure in (
        ("missing_keys", "the files are incomplete or of another model"),
        ("mismatched_keys", "config.json does not fit the weights"),
    ):
        if names := sorted(str(name) for name in info.get(problem, ())):
            raise ModelError(f"{folder}: {len(names)} {problem.replace('_', ' ')}, first {names[0]}; {cure}")
    return model.eval()


def _load_merged(
    folder: Path, dtype: torch.dtype | None, attn_implementation: str | None, trust_remote_code: bool
) -> PreTrainedModel:
    """The base of an adapter with the adapter added to its weights."""
    base = adapters.base_folder(folder, trust_remote_code=trust_remote_code)
    tokens = len(load_tokenizer(folder, trust_remote_code=trust_remote_code))
    model = load_model(base, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code)
    return adapters.merge_adapter(model, folder, tokens)


def model_fingerprint(folder: Path) -> str:
    """A name for the content of a model: of its files, or of an adapter and its base.

    Args:
        folder: a model folder or an adapter folder.

    Returns:
        64 hexadecimal digits.
    """
    if adapters.is_adapter(folder):
        parts = [files_fingerprint(adapters.base_folder(folder)), *adapters.adapter_facts(folder).values()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    return files_fingerprint(folder)


def _installed(module: str) -> bool:
    """Whether a module can be imported, found without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
