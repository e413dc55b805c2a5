"""The guard at the border: a model folder is read here, by allow-list, before transformers sees it.

A model folder is somebody else's input. transformers turns every key of its ``config.json`` into an attribute,
looks some values up by name and downloads or runs code for a few. So the keys must be ones that the class of the
``model_type`` knows; what is unknown and only a number or a word is let through and reported; what is unknown and
could steer loading is refused by name. Nothing in this module runs or imports anything that the folder names.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sengi.errors import ModelError

MAX_CONFIG_BYTES = 4 * 2**20
MAX_TOKENIZER_BYTES = 256 * 2**20
MAX_HEADER_BYTES = 100 * 2**20  # the limit of the safetensors format itself

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
CONFIG_FILES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")

# Keys that make a loader fetch or run code, wherever they stand and whatever their value.
CODE_KEYS = frozenset({
    "auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "code_revision", "pipeline_template",
    "_attn_implementation_internal", "_experts_implementation_internal",
    "kernel_config", "use_kernels", "kernels", "hub_kernels", "allow_all_kernels", "distributed_config",
})  # fmt: skip
QUANTIZATION_KEYS = frozenset({"quantization_config", "quantization", "compression_config"})
# A value with a slash in one of these keys is the name of a kernel on the hub, which is downloaded and run.
IMPLEMENTATION_KEYS = frozenset({
    "_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation",
})  # fmt: skip
IMPLEMENTATIONS = frozenset({
    None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention",
    "grouped_mm", "batched_mm",
})  # fmt: skip
# transformers looks a dtype up as an attribute of torch: only these may be looked up.
DTYPES = frozenset({None, "float32", "float16", "bfloat16", "float64", "auto"})
DTYPE_KEYS = frozenset({"dtype", "torch_dtype"})

# Keys that older versions and other tools write and that transformers reads or ignores harmlessly.
HARMLESS_KEYS = frozenset({
    "_name_or_path", "_model_name_or_path", "name_or_path", "_commit_hash", "_attn_implementation_autoset",
    "_flash_attn_2_enabled", "_from_model_config", "_sliding_window_pattern", "transformers.js_config",
    "transformers_version", "architectures", "rope_scaling", "rope_theta", "rope_parameters", "rope_local_base_freq",
    "task_specific_params", "pruned_heads", "id2label", "label2id", "torch_dtype", "dtype", "tokenizer_class",
    "layer_types", "sliding_window_pattern", "use_cache", "unsloth_version", "unsloth_fixed", "num_labels",
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
})  # fmt: skip


def inspect_model_folder(folder: Path, *, trust_remote_code: bool = False) -> list[str]:
    """Check a folder of safetensors before anything in it is loaded.

    Args:
        folder: the model folder.
        trust_remote_code: let keys through that fetch or run code of the model's author.

    Returns:
        Warnings, one line each: unknown but harmless keys, files that are never run or read.

    Raises:
        ModelError: a file is missing, cut or too large, a key is not allowed, weights are pickled or quantized.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: not a folder; give a folder with config.json and *.safetensors")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: adapter_config.json makes this an adapter, not a model; merge it into its base model first "
            "(sengi export --merge) and use the merged folder"
        )
    config = read_config(folder / "config.json")
    warnings = _check_config(folder / "config.json", config, trust_remote_code)
    inspect_tokenizer_files(folder, trust_remote_code=trust_remote_code)
    warnings += _check_weights(folder)
    scripts = sorted(p.name for p in folder.glob("*.py"))
    if scripts and not trust_remote_code:
        warnings.append(f"{folder}: {', '.join(scripts)} will not be run")
    return warnings


def inspect_tokenizer_files(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Check the small JSON files beside the weights; a folder with only a tokenizer passes too.

    Args:
        folder: the folder that holds the tokenizer.
        trust_remote_code: let keys through that fetch or run code.

    Raises:
        ModelError: a file is not JSON or too large, or a key would fetch or run code.
    """
    for name in CONFIG_FILES:
        if (folder / name).exists():
            config = read_config(folder / name)
            if not trust_remote_code:
                _refuse_code(folder / name, config)
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"):
        path = folder / name
        if path.exists() and path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ModelError(
                f"{path}: {path.stat().st_size:,} bytes, more than {MAX_TOKENIZER_BYTES:,}; not a tokenizer"
            )


def read_config(path: Path, *, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most ``limit`` bytes.

    Raises:
        ModelError: missing, too large, or not a JSON object.
    """
    if not path.is_file():
        raise ModelError(f"{path}: missing; a model folder needs config.json and *.safetensors")
    if path.stat().st_size > limit:
        raise ModelError(f"{path}: {path.stat().st_size:,} bytes, more than {limit:,}; not a configuration")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); download the file again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: a JSON object is needed, found {type(config).__name__}")
    return config


def _check_config(path: Path, config: dict[str, Any], trust_remote_code: bool) -> list[str]:
    """Hold ``config.json`` against the keys of its model type; returns warnings."""
    for key, value in _walk(config):
        if key in QUANTIZATION_KEYS and value:
            raise ModelError(f"{path}: {key}: the weights are quantized; use the folder of the unquantized model")
    if trust_remote_code and "auto_map" in config:
        return [f"{path}: auto_map: code of the model's author will run (trust_remote_code)"]
    if not trust_remote_code:
        _refuse_code(path, config)
    model_type = config.get("model_type")
    known = _known_keys(path, model_type)
    warnings = []
    for key, value in config.items():
        if key in known:
            continue
        if not trust_remote_code and (key.startswith("_") or _steers(value)):
            raise ModelError(
                f"{path}: key {key!r} is not one that a {model_type!r} model has; remove it, or pass "
                "trust_remote_code=True if you trust the author of this model"
            )
        warnings.append(f"{path}: unknown key {key!r} is ignored")
    return warnings


def _refuse_code(path: Path, config: dict[str, Any]) -> None:
    """Refuse keys and values, at any depth, that make a loader fetch or run something."""
    cure = "remove it, or pass trust_remote_code=True if you trust the author of this model"
    for key, value in _walk(config):
        if key in CODE_KEYS and value not in (None, False):
            raise ModelError(f"{path}: key {key!r} would fetch or run code; {cure}")
        if isinstance(value, str) and value.endswith(".py"):
            raise ModelError(f"{path}: key {key!r} names a program ({value!r}); {cure}")
        if key in IMPLEMENTATION_KEYS and (not isinstance(value, str | None) or value not in IMPLEMENTATIONS):
            raise ModelError(f"{path}: key {key!r} would download the kernel {str(value)!r}; {cure}")
        if key in DTYPE_KEYS and (not isinstance(value, str | None) or value not in DTYPES):
            raise ModelError(f"{path}: {key}: {str(value)!r} is not a float type; set float32, float16 or bfloat16")


def _known_keys(path: Path, model_type: Any) -> frozenset[str]:
    """Keys of the configuration class that transformers has for this model type, and the common ones."""
    from transformers import GenerationConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if not isinstance(model_type, str):
        raise ModelError(f'{path}: no model_type; add the one of its family, for example "llama"')
    if model_type not in CAUSAL:
        near = difflib.get_close_matches(model_type, CAUSAL, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"{path}: model_type {model_type!r} is no causal language model of this transformers{hint}")
    config_class = CONFIG_MAPPING[model_type]
    keys = set(inspect.signature(config_class.__init__).parameters) | set(config_class.attribute_map)
    keys |= set(GenerationConfig().to_dict()) | HARMLESS_KEYS | IMPLEMENTATION_KEYS
    # Only empty ones of these come this far.
    keys |= CODE_KEYS | QUANTIZATION_KEYS
    # A few classes refuse their own defaults; their signature is all there is to know.
    with contextlib.suppress(Exception):
        keys |= set(config_class().to_dict())
    return frozenset(keys)


def _check_weights(folder: Path) -> list[str]:
    """Safetensors present, whole, and inside the folder; returns warnings about weights that are not read."""
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    files = weight_files(folder)
    if not files and pickles:
        raise ModelError(
            f"{folder}: {pickles[0]} is a pickle, which runs code when it is opened; convert it to safetensors "
            "(model.save_pretrained on a machine you can lose) or take a revision that has *.safetensors"
        )
    if not files:
        raise ModelError(f"{folder}: no *.safetensors; the weights are missing, download the folder again")
    for file in files:
        check_safetensors(file)
    return [f"{folder}: {name} is not read, the safetensors are" for name in pickles]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that transformers will read, in the order of their names.

    Raises:
        ModelError: the index names a file outside the folder or one that is missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        return []
    # An index has one line a tensor: far more of them than a configuration has keys.
    weight_map = read_config(index, limit=MAX_TOKENIZER_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: no weight_map; download the file again")
    names = {str(name) for name in weight_map.values()}
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: {name!r} is not a safetensors file of this folder; correct the weight_map")
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}: missing, though {index.name} names it; download the folder again")
    return [folder / name for name in sorted(names)]


def check_safetensors(path: Path) -> None:
    """Refuse a file whose length is not the one that its header promises (a cut download).

    Raises:
        ModelError: the header cannot be read or the length differs.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, size):
            raise ModelError(f"{path}: not a safetensors file ({size:,} bytes); download it again")
        header = file.read(length)
    try:
        tensors = json.loads(header)
        end = max((int(t["data_offsets"][1]) for name, t in tensors.items() if name != "__metadata__"), default=0)
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError) as error:
        raise ModelError(f"{path}: the safetensors header cannot be read; download it again") from error
    if 8 + length + end != size:
        raise ModelError(f"{path}: {size:,} bytes where {8 + length + end:,} were written; download it again")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at every depth; members of a list come under the key of the list."""
    pending = [("", value)]
    while pending:
        key, item = pending.pop()
        if isinstance(item, dict):
            for name, inner in item.items():
                yield name, inner
                pending.append((name, inner))
        elif isinstance(item, list):
            for inner in item:
                if not isinstance(inner, dict | list):
                    yield key, inner
                pending.append((key, inner))


def _steers(value: Any) -> bool:
    """Whether a value could tell a loader more than a number or a word: nested, a path or an address."""
    if isinstance(value, dict):
        return True
    if isinstance(value, list):
        return any(_steers(item) for item in value)
    return isinstance(value, str) and ("/" in value or "\\" in value)
