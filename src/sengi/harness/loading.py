"""The model of an evaluation: a folder, a name, an adapter on its base, or one that is loaded already."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.environment import ask_for_huge_pages
from sengi.errors import InputError
from sengi.harness.response_cache import engine_version
from sengi.model.adapters import adapter_facts, base_folder, has_tokenizer, is_adapter, is_merged, put_adapter
from sengi.model.load import load_model, load_tokenizer, model_fingerprint
from sengi.model.resolve import resolve_model

DTYPES = ("auto", "float32", "bfloat16", "float16")
# Files beside config.json and the weights that decide what a text is: they are part of the model's name in a cache.
TEXT_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be asked.

    Attributes:
        model: in evaluation mode, on its device.
        tokenizer: its tokenizer.
        facts: JSON facts that tell it apart from every other; None for a model that did not come from a folder.
        folder: the folder with exactly these weights; None where there is none (a loaded model, an adapter).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: dict[str, Any] | None
    folder: Path | None


def load_for_scoring(
    pretrained: str | Path | PreTrainedModel,
    *,
    peft: str | Path | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        pretrained: a model folder, a LoRA adapter folder, a name that `resolve_model` knows, or a loaded model.
        peft: a LoRA adapter folder to put on ``pretrained``; its change is never rounded to the type of the weights.
        tokenizer: a folder or a loaded tokenizer; None takes the model's own (an adapter's, where it has one).
        dtype: type of the weights; None takes float32 on the CPU, else the type they are stored in.
        device: None takes CUDA where there is one (under torchrun each process its own), else the CPU.
        trust_remote_code: run the code of the model's author.

    Raises:
        InputError: the device or the type is not known.
        ModelError: the model, tokenizer or adapter cannot be loaded.
    """
    if isinstance(pretrained, PreTrainedModel):
        own = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
        own = own or load_tokenizer(Path(str(tokenizer or pretrained.name_or_path)))
        return LoadedModel(pretrained.eval(), own, None, None)
    place = _device(device)
    if place.type == "cpu":
        ask_for_huge_pages()
    number_type = _dtype(dtype, place)
    path = Path(pretrained).expanduser()
    if peft is None and is_adapter(path):
        peft, pretrained = path, base_folder(path, trust_remote_code=trust_remote_code)
    folder = resolve_model(str(pretrained), trust_remote_code=trust_remote_code)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        adapters = [Path(peft)] if peft is not None and has_tokenizer(Path(peft)) else []
        tokenizer_folder = Path(tokenizer or [*adapters, folder][0])
        tokenizer = load_tokenizer(tokenizer_folder, trust_remote_code=trust_remote_code)
    else:
        tokenizer_folder = Path(tokenizer.name_or_path)
    model = load_model(folder, dtype=number_type, trust_remote_code=trust_remote_code)
    facts: dict[str, Any] = {
        "weights": model_fingerprint(folder),
        "texts": _text_fingerprint(folder, tokenizer_folder),
        "dtype": str(model.dtype),
        "device": place.type,
        "engine": engine_version(),
    }
    if peft is not None:
        if not is_merged(model):
            facts["beside"] = True  # kept answers without it are of a sum that was rounded
        model = put_adapter(model, Path(peft), len(tokenizer))
        facts["adapter"] = adapter_facts(Path(peft))
    moved: Any = model  # transformers types ``to`` in a way that takes no device
    return LoadedModel(moved.to(place).eval(), tokenizer, facts, folder if peft is None else None)


def _device(name: str | None) -> torch.device:
    """The device of this process."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise InputError(f"device={name}: no such device; use cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={name}: torch finds no CUDA GPU here; use device=cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def _dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The type of the weights; None keeps the stored one."""
    if isinstance(name, torch.dtype):
        return name
    if name is None:
        return torch.float32 if device.type == "cpu" else None  # bfloat16 is far slower on most CPUs (measured: 400x)
    if name not in DTYPES:
        raise InputError(f"dtype={name}: not a type of weights; use one of {', '.join(DTYPES)}")
    found: torch.dtype | None = None if name == "auto" else getattr(torch, name)
    return found


def _text_fingerprint(*folders: Path) -> str:
    """Hash of the files that decide how text becomes tokens and tokens text."""
    digest = hashlib.sha256()
    for folder in folders:
        for pattern in TEXT_FILES:
            for path in sorted(folder.glob(pattern)):
                digest.update(f"{path.name}\0{_hash(path)}\0".encode())
    return digest.hexdigest()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
