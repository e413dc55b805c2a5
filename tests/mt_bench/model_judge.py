"""A local model behind the judge's protocol: the smallest server that lets a real model judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.mt_bench.judge_server import Asked, Say

from sengi.inference.generation import Generator
from sengi.inference.generation_request import GenerationRequest
from sengi.inference.prompts import Prompts
from sengi.model.load import load_model, load_tokenizer


class ModelJudge:
    """Answers each request with a real model, greedily and briefly; use it with concurrency 1.

    Args:
        folder: of the model.
        max_new_tokens: longest judgement, so that a test ends.
    """

    def __init__(self, folder: Path, max_new_tokens: int) -> None:
        tokenizer = load_tokenizer(folder)
        model: Any = load_model(folder, dtype=torch.float32)
        self._prompts = Prompts(tokenizer)
        self._generator = Generator(model, tokenizer)
        self._max_new_tokens = max_new_tokens

    def __call__(self, asked: Asked, _: int) -> Say:
        ids = self._prompts.ids(self._prompts.text(asked.body["messages"]))
        room = min(self._max_new_tokens, asked.body["max_tokens"])
        return Say(self._generator.generate([GenerationRequest(ids, room)])[0])
