"""The configurations of benchmarks/memory.py: model shapes, and the files a run of one needs.

Weights are random: they do not change what a step keeps in memory. Text is made of digits, one token each, unless real
conversations and their tokenizer are given.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = 24
STEPS = (8, 20)  # of digits, of real ones: the largest micro-batch must come after the first update makes the moments
CHARACTERS = (200, 900)  # of an answer; a character is about a token of the byte tokenizer
COMMON: dict[str, Any] = {"max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
GRANITE = {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22}
GEMMA_3 = {"head_dim": 128, "sliding_window": 512, "num_attention_heads": 4, "num_key_value_heads": 1}


def _shape(hidden: int, inner: int, layers: int, heads: int, groups: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocab,
        **COMMON,
        **more,
    }


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 52M, tied": ("LlamaConfig", _shape(512, 1408, 12, 8, 4, 32_000, tie_word_embeddings=True)),
    "llama 67M, untied": ("LlamaConfig", _shape(512, 1408, 12, 8, 2, 32_000, tie_word_embeddings=False)),
    "llama 135M, tied": ("LlamaConfig", _shape(576, 1536, 30, 9, 3, 49_152, tie_word_embeddings=True)),
    "qwen2 46M, tied": ("Qwen2Config", _shape(384, 1536, 10, 6, 2, 64_000, tie_word_embeddings=True)),
    "qwen3 69M, tied": ("Qwen3Config", _shape(512, 1536, 16, 8, 2, 40_000, tie_word_embeddings=True, head_dim=64)),
    "gemma3 65M, tied": ("Gemma3TextConfig", _shape(448, 1792, 12, 4, 1, 65_536) | GEMMA_3),
    "granite 43M, tied": ("GraniteConfig", _shape(512, 1024, 10, 8, 8, 32_000, tie_word_embeddings=True) | GRANITE),
    "phi3 67M, untied": ("Phi3Config", _shape(512, 1536, 10, 8, 8, 32_064, tie_word_embeddings=False)),
    "mistral 62M, wide": ("MistralConfig", _shape(768, 2048, 6, 12, 4, 16_000, tie_word_embeddings=False)),
}


@dataclass(frozen=True)
class Case:
    """One configuration: a shape of SHAPES, processes, and what its recipe sets.

    Attributes:
        stored: type of the weights in the model's files.
        compiled: whether layers are compiled.
        fitted: whether the constants of the forecast were fitted on it; the others check them.
    """

    shape: str
    budget: int
    batch: int
    ranks: int = 1
    dial: str = "none"
    optim: str = "adamw_torch_fused"
    use_peft: bool = False
    dtype: str = "float32"
    stored: str = "float32"
    compiled: bool = False
    fitted: bool = False


@dataclass(frozen=True)
class Real:
    """Real conversations in place of digits: files that a recipe reads, and a folder with the model's tokenizer."""

    data: Sequence[str]
    tokenizer: str


def write_files(case: Case, folder: Path, real: Real | None = None) -> Path:
    """Model, data and recipe of a case; returns the recipe.

    Args:
        folder: an existing, empty folder.
        real: what is trained on in place of digits.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sengi.model.tokenizer_files import save_tokenizer

    name, values = SHAPES[case.shape]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**values)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case.stored)).save_pretrained(folder / "model")
    if real is None:
        _write_digits(folder)
    else:
        save_tokenizer(AutoTokenizer.from_pretrained(real.tokenizer, local_files_only=True), folder / "model")
    recipe = {
        "model_name_or_path": str(folder / "model"),
        "data": [{"path": path} for path in (real.data if real else [str(folder / "data.jsonl")])],
        "output_dir": str(folder / "run"),
        "effective_batch_size": case.batch,
        "max_tokens_per_device": case.budget,
        "max_length": case.budget,
        "max_steps": STEPS[real is not None],
        "dtype": case.dtype,
        "gradient_checkpointing": case.dial,
        "optim": case.optim,
        "use_peft": case.use_peft,
        "torch_compile": case.compiled,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))
    return path


def _write_digits(folder: Path) -> None:
    """A tokenizer of bytes beside the model, and conversations of digits."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from benchmarks.small_model import CHATML, SPECIAL
    from sengi.model.tokenizer_files import save_tokenizer

    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL[2], pad_token=SPECIAL[3])
    tokenizer.chat_template = CHATML
    save_tokenizer(tokenizer, folder / "model")
    draw = random.Random(0)
    with (folder / "data.jsonl").open("w") as file:
        for _ in range(ROWS):
            text = "".join(draw.choices("0123456789", k=draw.randint(*CHARACTERS)))
            turns = [{"role": "user", "content": text[:90]}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": turns}) + "\n")
