"""The Hugging Face side of a checkpoint: weights, configs, tokenizer and card, ready for transformers and vLLM.

What readers trip over is settled here: the chat template in both of its places and byte-identical, the token
that closes a turn as eos in tokenizer and generation config, a pad token that is not among the eos ids.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from sengi.errors import ModelError
from sengi.model.adapters import BASE, FINGERPRINT, WEIGHTS, base_record
from sengi.model.gguf import unused_token
from sengi.model.inspect import read_config
from sengi.model.load import model_fingerprint
from sengi.model.lora import config_file, file_tensors, is_adapter_state
from sengi.model.tokenizer_files import save_tokenizer
from sengi.model.turn_end import turn_end_id
from sengi.recipe import LORA_KEYS, Recipe
from sengi.train.tensor_files import safetensors_pieces

CARD_KEYS = ("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_length", "seed")
SHARD_BYTES = 2_000_000_000  # what a reader must download or hold at once


def export_files(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> dict[str, bytes]:
    """Everything of the folder but weights and card; the same for every checkpoint of a run.

    Returns:
        File name -> content.

    Raises:
        ModelError: the two copies of the chat template differ.
    """
    ends, pad = _settle_ends(tokenizer)
    config = json.loads(lm.config.to_json_string(use_diff=True))
    config.update(
        dtype=str(dtype).removeprefix("torch."),
        architectures=[type(lm).__name__],
        eos_token_id=ends[0] if ends else None,
        pad_token_id=pad,
        use_cache=True,
    )
    for private in [key for key in config if key.startswith("_")]:
        del config[private]
    generation = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends[0] if len(ends) == 1 else ends, pad_token_id=pad
    )
    return {
        "config.json": _json(config),
        "generation_config.json": (generation.to_json_string(use_diff=True)).encode(),
        **_tokenizer_files(tokenizer),
    }


def adapter_files(config: Any, tokenizer: PreTrainedTokenizerBase, name: str, base: Path) -> dict[str, bytes]:
    """Everything of an adapter's folder but weights and card; the same for every checkpoint of a run.

    Args:
        config: peft's configuration of the adapter.
        tokenizer: of the base; it is changed as for a whole model.
        name: what the recipe calls the base. Of a local folder or file the whole path is written.
        base: the base's folder.

    Returns:
        File name -> content.

    Raises:
        ModelError: the two copies of the chat template differ.
    """
    _settle_ends(tokenizer)
    path = Path(name).expanduser()
    found = str(path.resolve()) if path.exists() else name
    config_name, content = config_file(config, found)
    return {
        config_name: content,
        BASE: base_record(found, model_fingerprint(base)),
        **_tokenizer_files(tokenizer),
    }


def check_base(checkpoint: Path, files: Mapping[str, bytes]) -> None:
    """Hold the base of a run that is continued against the one that its checkpoint was trained on.

    Args:
        checkpoint: verified; of a whole model or an adapter.
        files: of this run, as :func:`adapter_files` or :func:`export_files` made them.

    Raises:
        ModelError: the base is another one now.
    """
    if BASE not in files:
        return
    now, then = json.loads(files[BASE]), read_config(checkpoint / BASE)
    if now[FINGERPRINT] != then.get(FINGERPRINT):
        raise ModelError(
            f"{checkpoint}: its adapter was trained on a base of fingerprint {str(then.get(FINGERPRINT))[:12]}, but "
            f"{now['name_or_path']} has {now[FINGERPRINT][:12]}; restore the base, or choose another output_dir"
        )


def _settle_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int | None]:
    """Make the token that closes a turn the tokenizer's eos, and give it a pad token that is no eos; ids of both."""
    end = turn_end_id(tokenizer)
    base_end = tokenizer.eos_token_id
    ends = [token for token in dict.fromkeys([end, base_end]) if token is not None]
    if end is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        spare = unused_token(tokenizer)
        tokenizer.pad_token = spare if spare is not None else tokenizer.unk_token
    return ends, tokenizer.pad_token_id if tokenizer.pad_token_id not in ends else None


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    inline = json.loads(files["tokenizer_config.json"]).get("chat_template")
    template = files.get("chat_template.jinja")
    if (template is None) != (inline is None) or (template is not None and template != inline.encode()):
        raise ModelError("the chat template of tokenizer_config.json and chat_template.jinja differ; keep one of them")
    return files


def weight_files(
    lm: PreTrainedModel, state: Mapping[str, Tensor]
) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    """The weights as safetensors files with an index where there are several: name and content, one at a time.

    An adapter is one file, under peft's names.

    Args:
        lm: the model; its family's files may hold what is one tensor in memory as several (experts, in transformers 5).
        state: name -> full tensor on the CPU in the type it is saved in, each tied weight once.
    """
    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    if is_adapter_state(whole):
        yield WEIGHTS, safetensors_pieces(file_tensors(whole), {"format": "pt"})
        return
    whole = {name: tensor.contiguous() for name, tensor in revert_weight_conversion(lm, whole).items()}
    split = split_torch_state_dict_into_shards(whole, max_shard_size=SHARD_BYTES)
    for name, tensors in split.filename_to_tensors.items():
        yield name, safetensors_pieces({tensor: whole[tensor] for tensor in tensors}, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        yield "model.safetensors.index.json", [_json(index)]


def model_card(recipe: Recipe, step: int, samples_seen: int, loss: float, data: Mapping[str, int]) -> bytes:
    """README.md with the header that model hubs read. Licence and language are the user's to add."""
    phased = recipe.strategy == "phased"
    size = ", one phase after another" if phased else f" of {recipe.effective_batch_size:,}"
    what = "Supervised fine-tuning of a LoRA adapter" if recipe.use_peft else "Supervised fine-tuning"
    lines = [
        "---",
        f"base_model: {json.dumps(recipe.model_name_or_path)}",
        f"library_name: {'peft' if recipe.use_peft else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags:",
        "- sft",
        "- sengi",
        *(["- lora"] if recipe.use_peft else []),
        "---",
        "",
        f"# {Path(recipe.output_dir).resolve().name}, step {step}",
        "",
        f"{what} of `{recipe.model_name_or_path}` with Sengi: {samples_seen:,} samples seen in "
        f"{step:,} steps{size}, training loss {loss:.4f}.",
        "",
        "| data source | samples |",
        "|---|---|",
        *[f"| {name} | {count:,} |" for name, count in data.items()],
        "",
        "| setting | value |",
        "|---|---|",
        *[f"| `{key}` | {getattr(recipe, key)} |" for key in (*CARD_KEYS, *(LORA_KEYS if recipe.use_peft else ()))],
        *([f"| `phases` | {json.dumps(recipe.phasing.model_dump(exclude_defaults=True))} |"] if phased else []),
        "",
    ]
    return "\n".join(lines).encode()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
