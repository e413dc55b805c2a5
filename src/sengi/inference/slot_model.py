"""A model whose rows lie in slots (:mod:`sengi.inference.slots`), whatever its family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from sengi.inference.lent_model import layer_index
from sengi.inference.slots import Slots

NAME = "sengi_slots"


class SlotModel:
    """A model whose rows lie in slots; to be used inside ``lent(model, NAME)``.

    Args:
        model: a causal language model in evaluation mode.
        count: most rows at a time.
    """

    def __init__(self, model: PreTrainedModel, count: int) -> None:
        self._model = model
        self._slots = Slots(count, model.device)

    def share(self, ids: list[int]) -> None:
        """Compute the prefix that all rows begin with; before the first row."""
        self._slots.enter("prefix", len(ids))
        self._call([ids], [list(range(len(ids)))])
        self._slots.prefix = len(ids)

    def add(self, ids: list[int]) -> Tensor:
        """Take a row into the next free slot.

        Args:
            ids: its tokens after the shared prefix, at least one.

        Returns:
            (1, vocabulary): logits of the token that follows.
        """
        start = self._slots.prefix
        self._slots.enter("row", len(ids))
        logits = self._call([ids], [list(range(start, start + len(ids)))])
        self._slots.lengths.append(len(ids))
        return logits

    def step(self, tokens: list[int]) -> Tensor:
        """Add one token to every row.

        Args:
            tokens: one a slot.

        Returns:
            (n, vocabulary): logits of the tokens that follow.
        """
        slots = self._slots
        slots.enter("step", 1)
        logits = self._call([[token] for token in tokens], [[slots.prefix + length] for length in slots.lengths])
        slots.lengths = [length + 1 for length in slots.lengths]
        return logits

    def drop(self, slot: int) -> None:
        """Take a row out; the row of the last slot moves into its place."""
        self._slots.drop(slot)

    def _call(self, ids: list[list[int]], positions: list[list[int]]) -> Tensor:
        call: Any = self._model
        output = call(
            input_ids=torch.tensor(ids, device=self._model.device),
            position_ids=torch.tensor(positions, device=self._model.device),
            use_cache=False,
            logits_to_keep=1,
            slots=self._slots,
        )
        return output.logits[:, -1]


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    slots: Slots | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' layers call; see :class:`SlotModel`.

    Args:
        attention_mask: must be None.
        slots: where the keys and values of the rows lie.
        sliding_window: tokens each token sees, itself included; None for its whole row.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).

    Returns:
        (n, T, H, D) and None in place of attention weights.

    Raises:
        ValueError: a mask, no slots, dropout, a bias or attention sinks, or a layer that does not say which layer it
            is or how far it sees.
    """
    if slots is None:
        raise ValueError("attention over slots needs slots")
    layer = layer_index(module, attention_mask, dropout, sliding_window, kwargs)
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    return slots.attend(layer, query, key, value, scale, sliding_window, softcap), None


AttentionInterface.register(NAME, slot_attention)
