"""lm-eval requests for tests, and a plain reading of a model to hold against."""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.api.instance import Instance
from transformers import PreTrainedModel


def request(kind: str, *arguments: Any, task: str = "task", doc: int = 0, repeats: int = 1) -> Instance:
    return Instance(kind, {}, arguments, 0, (task, doc, repeats))


def scored(*pairs: tuple[str, str]) -> list[Instance]:
    return [request("loglikelihood", *pair, doc=number) for number, pair in enumerate(pairs)]


def written(*prompts: str, **arguments: Any) -> list[Instance]:
    return [request("generate_until", prompt, dict(arguments), doc=number) for number, prompt in enumerate(prompts)]


@torch.no_grad()
def plain_loglikelihood(model: PreTrainedModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One forward call over the whole text."""
    logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1].float().log_softmax(-1)
    chosen = logits[torch.arange(len(continuation)), torch.tensor(continuation)]
    return float(chosen.sum()), bool((logits.argmax(-1) == torch.tensor(continuation)).all())
