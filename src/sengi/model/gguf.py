"""A GGUF file becomes a folder of float32 safetensors, once, in a cache that every later call uses at once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sengi.errors import ModelError, class_and_text
from sengi.model.quiet import quiet_transformers
from sengi.model.tokenizer_files import save_tokenizer
from sengi.model.turn_end import turn_end_id

# Counts up when the conversion changes what it writes: old copies are then left alone and made anew.
CONVERSION_VERSION = 1
RECORD = "sengi_conversion.json"
MAX_LAYERS = 1_000

# llama.cpp's names of pre-tokenizers that cut every digit off before GPT-2's rule; transformers leaves the
# digits together, which makes other tokens of every number than the model was trained on.
SINGLE_DIGIT_SPLITTERS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
GPT2_SPLITTERS = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"})


def convert_gguf(path: Path, cache: Path, name: str) -> Path:
    """Convert a GGUF file to a model folder, or find the folder of an earlier conversion.

    Args:
        path: the GGUF file.
        cache: the folder of all converted models.
        name: first part of the new folder's name.

    Returns:
        ``cache/<name>-<12 digits of the file's SHA-256>-v<version>``, complete.

    Raises:
        ModelError: not a GGUF file, not a supported architecture or tokenizer, or the ``gguf`` package is missing.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path}: not a GGUF file; download it again")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache / f"{name}-{digest[:12]}-v{CONVERSION_VERSION}"
    if is_complete(target):
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _only_one(cache / f".{target.name}.lock"):
            # Another process may have converted it while this one waited.
            if not is_complete(target):
                logging.getLogger("sengi.model").warning("converting %s, once, to %s", path.name, target)
                _convert_into(path, target, digest)
    except OSError as error:
        raise ModelError(f"{cache}: {error.strerror or error}; set SENGI_CACHE to a folder with enough room") from error
    return target


def is_complete(folder: Path) -> bool:
    """Whether a converted folder holds every file that its record names, at the recorded length."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in record["bytes"].items())
    except (OSError, ValueError, KeyError):
        return False


def _convert_into(path: Path, target: Path, digest: str) -> None:
    """Convert in a temporary folder beside the target and rename it: half a model is never found."""
    prefix = f".{target.name}-"
    for stale in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        with quiet_transformers():
            tokenizer = read_tokenizer(path)
            model = read_model(path)
            set_special_tokens(model, tokenizer)
            model.save_pretrained(str(folder))
            save_tokenizer(tokenizer, folder)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        record = {"source": path.name, "sha256": digest, "version": CONVERSION_VERSION, "bytes": sizes}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for file in folder.iterdir():
            file.chmod(0o644)
            _flush(file)
        folder.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        os.rename(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read_model(path: Path) -> PreTrainedModel:
    """Dequantize a GGUF file into a dense float32 model.

    Args:
        path: the GGUF file.

    Returns:
        The model with every parameter read from the file.
    """
    # This reader is what transformers itself uses for these architectures, in every version since 4.50; through
    # from_pretrained it would ask for accelerate and mark the model as quantized, which cannot be saved.
    try:
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
        if getattr(config, "num_hidden_layers", 0) > MAX_LAYERS:
            raise ModelError(f"{path}: {config.num_hidden_layers:,} layers; no such model exists, download it again")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model, torch_dtype=torch.float32)[
            "tensors"
        ]
        model.load_state_dict(tensors, strict=False, assign=True)
        model.tie_weights()
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(f"{path}: {class_and_text(error)}; pip install 'sengi[gguf]'") from error
    except Exception as error:  # whatever a malformed or unknown file makes the readers raise
        raise ModelError(
            f"{path}: cannot be converted: {class_and_text(error)}; use the model's safetensors folder"
        ) from error
    if missing := [name for name, value in model.named_parameters() if value.is_meta]:
        raise ModelError(f"{path}: {len(missing)} weights are missing, first {missing[0]}; download the file again")
    return model


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Build the tokenizer that a GGUF file describes, with numbers cut as the model was trained on.

    Raises:
        ModelError: the file names a way of cutting text that is not known here.
    """
    try:
        from gguf import GGUFReader

        with tempfile.TemporaryDirectory() as alone:  # files beside the GGUF file must not shape what is kept
            (Path(alone) / path.name).symlink_to(path.resolve())
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=path.name, local_files_only=True)
        fields = GGUFReader(str(path)).fields
        model, pre = (
            fields[key].contents() if key in fields else None for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre")
        )
    except ImportError as error:
        raise ModelError(f"{path}: reading GGUF needs the package gguf; pip install 'sengi[gguf]'") from error
    except Exception as error:
        raise ModelError(f"{path}: the tokenizer cannot be read: {class_and_text(error)}") from error
    if model == "gpt2":
        repair_splitter(tokenizer, pre or "default", str(path))
    return tokenizer


def repair_splitter(tokenizer: PreTrainedTokenizerBase, pre: str, place: str) -> None:
    """Give a byte-level tokenizer the rule of its ``tokenizer.ggml.pre`` where transformers left it out.

    Args:
        tokenizer: built by transformers from a GGUF file; changed in place.
        pre: llama.cpp's name of the rule.
        place: the file, for messages.
    """
    backend = tokenizer.backend_tokenizer
    if pre in SINGLE_DIGIT_SPLITTERS:
        backend.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ])  # fmt: skip
    elif pre not in GPT2_SPLITTERS and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        raise ModelError(
            f"{place}: the text splitter {pre!r} is not known here and tokens would be wrong; "
            "use the model's safetensors folder"
        )


def set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Name the turn's closing token as eos, and a pad token that is not it, in tokenizer, config and generation.

    A reader that pads labels or stops at pad would otherwise drop the token that ends every answer. The pad token
    is one that the vocabulary has and nothing uses, so that the embedding keeps its size.

    Args:
        model: its ``config`` and ``generation_config`` are changed.
        tokenizer: its ``eos_token`` and ``pad_token`` are changed.
    """
    end = turn_end_id(tokenizer)
    if end is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = unused_token(tokenizer) or tokenizer.eos_token
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    for name, value in ids.items():
        setattr(model.config, f"{name}_token_id", value)
    model.generation_config = GenerationConfig(**{f"{name}_token_id": value for name, value in ids.items()})
    tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    # What the GGUF reader leaves in the config is no key of the model; the title could be taken for a path.
    for key in ("_model_name_or_path", "unk_token_id"):
        vars(model.config).pop(key, None)


def unused_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A special token of the vocabulary that neither the chat template nor the tokenizer uses; None without one.

    A token that calls itself pad or reserved goes first, then the last one: the first ones of a vocabulary are
    those that pretraining used as document separators.
    """
    named = {value for value in tokenizer.special_tokens_map.values() if isinstance(value, str)}
    template = str(tokenizer.chat_template)
    free = [
        token.content
        for _, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token.content not in named and token.content not in template
    ]
    for word in ("pad", "reserved", "unused"):
        if found := [token for token in free if word in token.lower()]:
            return found[0]
    return free[-1] if free else None


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Let one process at a time through, on any number of processes of this machine."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flush(path: Path) -> None:
    """Have the file on the disk before the rename makes it visible: a power cut must not leave zeros."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
