"""A checked folder becomes a tokenizer and a model; every load in Sengi goes through here."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sengi.errors import ModelError
from sengi.model import adapters
from sengi.model.inspect import inspect_model_folder, inspect_tokenizer_files, weight_files

FINGERPRINT_PIECE = 2**20  # bytes read at each end of a weight file


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
        raise ModelError(f"{folder}: the tokenizer cannot be loaded: {one_line(error)}") from error
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
        return adapters.load_merged(
            folder, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code
        )
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
        raise ModelError(f"{folder}: the model cannot be loaded: {one_line(error)}") from error
    model, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    # transformers fills missing weights with random numbers and only logs it.
    for problem, cure in (
        ("missing_keys", "the files are incomplete or of another model"),
        ("mismatched_keys", "config.json does not fit the weights"),
    ):
        if names := sorted(str(name) for name in info.get(problem, ())):
            raise ModelError(f"{folder}: {len(names)} {problem.replace('_', ' ')}, first {names[0]}; {cure}")
    return model.eval()


def model_fingerprint(folder: Path) -> str:
    """A name for the content of a model, independent of where the folder lies and when it was copied.

    The hash covers config.json, the name, length and header of every weight file and the first and last MiB of
    its data. It tells two trainings of one model apart, because an optimizer step changes every tensor; it is no
    protection against somebody who edits the middle of a file (the manifest of a checkpoint is).

    Args:
        folder: a model folder, or an adapter folder: then base and adapter are both in the name.

    Returns:
        64 hexadecimal digits.
    """
    if adapters.is_adapter(folder):
        parts = [model_fingerprint(adapters.base_folder(folder)), *adapters.adapter_facts(folder).values()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            digest.update(file.read(min(header, size) + FINGERPRINT_PIECE))
            file.seek(max(0, size - FINGERPRINT_PIECE))
            digest.update(file.read(FINGERPRINT_PIECE))
    return digest.hexdigest()


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer with its chat template in both forms, byte for byte the same.

    transformers and vLLM read ``chat_template.jinja`` first, llama.cpp and TGI the field of
    ``tokenizer_config.json``: a folder with one form, or with two that differ, is not the same model everywhere.

    Args:
        tokenizer: its ``chat_template`` must be one template (or None).
        folder: an existing folder.
    """
    tokenizer.save_pretrained(str(folder))
    template = tokenizer.chat_template
    if template is None:
        return
    if not isinstance(template, str):
        raise ModelError(f"{folder}: the tokenizer has {len(template)} named chat templates; keep one, set as a string")
    (folder / "chat_template.jinja").write_bytes(template.encode("utf-8"))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = template
    # How this process loaded it is no property of the tokenizer.
    for key in ("is_local", "local_files_only", "backend"):
        config.pop(key, None)
    if config.get("tokenizer_class") == "TokenizersBackend":  # transformers 5's name; readers on 4 know the old one
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what matters of them is raised as an error here."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def one_line(error: BaseException, limit: int = 300) -> str:
    """The class and the text of a foreign error on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:limit]}"


def _installed(module: str) -> bool:
    """Whether a module can be imported, found without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
