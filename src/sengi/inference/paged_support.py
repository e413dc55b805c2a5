"""Which model families can keep their rows in a paged cache, found by trying, and the way for those that cannot."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sengi.inference.lent_model import lent
from sengi.inference.paged_cache import blocks_of
from sengi.inference.paged_model import NAME, PagedModel


class OneRow:
    """One text at a time with the model's own cache: right for every family.

    Args:
        model: a causal language model in evaluation mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        self._seen: list[int] = []
        self._cache: Any = None

    def step(self, tokens: list[int]) -> Tensor:
        """Read the next tokens: the prompt first, then one by one.

        Returns:
            (1, vocabulary): logits of the token that follows.
        """
        call: Any = self._model
        self._seen += tokens
        device = self._model.device
        # A family that gives no cache back reads the whole text again.
        ids = self._seen if self._cache is None else tokens
        output = call(
            input_ids=torch.tensor([ids], device=device),
            attention_mask=torch.ones(1, len(self._seen), dtype=torch.long, device=device),
            past_key_values=self._cache,
            use_cache=True,
            **self._options,
        )
        self._cache = getattr(output, "past_key_values", None)
        logits: Tensor = output.logits[:, -1]
        return logits


@torch.no_grad()
def supports_paging(model: PreTrainedModel) -> bool:
    """Whether rows in a paged cache give what the model's own forward gives, tried on two rows of different lengths.

    Both share a prefix, and the second step must see what the first one wrote.
    """
    ids = [(i * 7919 + 11) % max(2, min(model.config.get_text_config().vocab_size, 30_000)) for i in range(20)]
    prefix, rows, steps = ids[:5], [ids[5:9], ids[9:16]], [ids[16:18], ids[18:20]]
    exact = next(model.parameters()).dtype == torch.float32
    tried: list[Tensor] = []
    try:
        with lent(model, NAME):
            paged = PagedModel(model, sum(blocks_of(len(row) + len(steps)) for row in rows), prefix)
            for row in rows:
                paged.add(row)
            tried = [paged.step(tokens) for tokens in steps]
    except torch.OutOfMemoryError:
        raise  # says nothing about the family, and one text at a time would only hide it
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError):
        return False  # no attention function is taken, or keys cannot be told apart: one row at a time then
    for number, row in enumerate(rows):
        for last, logits in enumerate(tried, start=1):
            text = [*prefix, *row, *(tokens[number] for tokens in steps[:last])]
            expected = model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits[0, -1].float()
            difference = (logits[number].float() - expected).abs().max()
            if not difference <= (1e-3 if exact else 5e-2) * expected.abs().max():  # NaN is no agreement
                return False
    return True
