"""Text from a model: the greedy continuation of a batch of prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel


@torch.inference_mode()
def generate_greedy(
    model: PreTrainedModel, prompts: list[list[int]], stops: list[int], max_new_tokens: int
) -> list[list[int]]:
    """Greedy continuation of each prompt, up to and without the first stop token.

    Args:
        model: in evaluation mode, with an attention function that takes a padding mask (``sdpa``, ``eager``).
        prompts: token ids, one list a prompt; all run in one batch.
        stops: ids that end an answer.
        max_new_tokens: longest answer, in tokens.

    Returns:
        The new ids of each prompt.
    """
    width = max(map(len, prompts))
    pad = stops[0] if stops else 0
    input_ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, ids in enumerate(prompts):
        # On the left, so that the answer follows its question without a gap.
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    generating: Any = model  # transformers types its models as callable modules without this method
    with _plain_generation(model):
        output = generating.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops or None, pad_token_id=pad
            ),
        )
    answers = output[:, width:].tolist()
    return [ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))] for ids in answers]


@contextlib.contextmanager
def _plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Hide the model's own generation settings: its repetition penalty or temperature is not what is measured."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
