"""Small models of the families that are tested, with weights large enough for every rule of theirs to show."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCAB = 211
WINDOW = 5  # shorter than most documents of the tests
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.15,
}
GRANITE = {"embedding_multiplier": 3.0, "logits_scaling": 2.5, "residual_multiplier": 0.7, "attention_multiplier": 0.3}
GEMMA_2 = {"sliding_window": WINDOW, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "granite": ("GraniteConfig", GRANITE),
    "mistral, window": ("MistralConfig", {"sliding_window": WINDOW}),
    "phi3, window": ("Phi3Config", {"sliding_window": WINDOW}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "query_pre_attn_scalar": 6, **GEMMA_2}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": WINDOW, "sliding_window_pattern": 2}),
    "qwen2, window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
}


def small_model(config: str, values: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """Random weights; norms and biases, too, so that no gradient is zero by symmetry."""
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(getattr(transformers, config)(**{**COMMON, **values}))
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return lm.float().eval()


@cache
def family(name: str) -> PreTrainedModel:
    """One model of each family for the whole suite; tests that change it take a copy."""
    config, values = FAMILIES[name]
    return small_model(config, values)
