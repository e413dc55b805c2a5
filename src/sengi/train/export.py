"""The Hugging Face side of a checkpoint: weights, configs, tokenizer and card, ready for transformers and vLLM.

What readers trip over is settled here: the chat template in both of its places and byte-identical, the token
that closes a turn as eos in tokenizer and generation config, a pad token that is not among the eos ids.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sengi.errors import ModelError
from sengi.model.gguf import unused_token
from sengi.model.load import save_tokenizer
from sengi.model.turn_end import turn_end_id
from sengi.recipe import Recipe

SHARD_BYTES = 2_000_000_000  # one file's bytes are in memory twice while it is written


def export_files(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> dict[str, bytes]:
    """Everything of the folder but weights and card; the same for every checkpoint of a run.

    Returns:
        File name -> content.

    Raises:
        ModelError: the two copies of the chat template differ.
    """
    end = turn_end_id(tokenizer)
    base_end = tokenizer.eos_token_id
    ends = [token for token in dict.fromkeys([end, base_end]) if token is not None]
    if end is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        spare = unused_token(tokenizer)
        tokenizer.pad_token = spare if spare is not None else tokenizer.unk_token
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id not in ends else None
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
    files = {
        "config.json": _json(config),
        "generation_config.json": (generation.to_json_string(use_diff=True)).encode(),
        **_tokenizer_files(tokenizer),
    }
    inline = json.loads(files["tokenizer_config.json"]).get("chat_template")
    template = files.get("chat_template.jinja")
    if (template is None) != (inline is None) or (template is not None and template != inline.encode()):
        raise ModelError("the chat template of tokenizer_config.json and chat_template.jinja differ; keep one of them")
    return files


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def weight_files(state: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[tuple[str, bytes]]:
    """The weights as safetensors files with an index where there are several; one file at a time.

    Args:
        state: name -> full tensor on the CPU, each tied weight once.
        dtype: type they are saved in.
    """
    cast = {name: tensor.to(dtype).contiguous() for name, tensor in state.items()}
    split = split_torch_state_dict_into_shards(cast, max_shard_size=SHARD_BYTES)
    for name, tensors in split.filename_to_tensors.items():
        yield name, safetensors_bytes({tensor: cast[tensor] for tensor in tensors}, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        yield "model.safetensors.index.json", _json(index)


def model_card(recipe: Recipe, step: int, samples_seen: int, loss: float, data: Mapping[str, int]) -> bytes:
    """README.md with the header that model hubs read. Licence and language are the user's to add."""
    lines = [
        "---",
        f"base_model: {json.dumps(recipe.model_name_or_path)}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- sft",
        "- sengi",
        "---",
        "",
        f"# {Path(recipe.output_dir).resolve().name}, step {step}",
        "",
        f"Supervised fine-tuning of `{recipe.model_name_or_path}` with Sengi: {samples_seen:,} samples seen in "
        f"{step:,} steps of {recipe.effective_batch_size:,}, training loss {loss:.4f}.",
        "",
        "| data source | samples |",
        "|---|---|",
        *[f"| {name} | {count:,} |" for name, count in data.items()],
        "",
        "| setting | value |",
        "|---|---|",
        *[
            f"| `{key}` | {getattr(recipe, key)} |"
            for key in ("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_length", "seed")
        ],
        "",
    ]
    return "\n".join(lines).encode()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
