"""A model whose rows lie in a paged cache (:mod:`sengi.inference.paged_cache`), whatever its family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from sengi.inference.lent_model import layer_index
from sengi.inference.paged_cache import PagedCache

NAME = "sengi_paged"
# Tokens of a prompt in one forward call: more take memory, on a processor without a gain in time.
CPU_TOKENS, GPU_TOKENS = 128, 4096


class PagedModel:
    """A model whose rows lie in a paged cache; to be used inside ``lent(model, NAME)``.

    Attributes:
        cache: the keys and values of the rows.

    Args:
        model: a causal language model in evaluation mode.
        blocks: blocks of the cache.
        prefix: tokens that all rows begin with; they are computed here, before the first row.
    """

    def __init__(self, model: PreTrainedModel, blocks: int, prefix: list[int]) -> None:
        self._model = model
        self.cache = PagedCache(blocks, len(prefix), model.device)
        self._read("prefix", prefix, 0)

    def add(self, ids: list[int]) -> Tensor:
        """Take in a row, behind the others.

        Args:
            ids: its tokens after the shared prefix, at least one.

        Returns:
            (1, vocabulary): logits of the token that follows.
        """
        self.cache.add()
        logits = self._read("row", ids, self.cache.prefix)
        assert logits is not None
        return logits

    def step(self, tokens: list[int]) -> Tensor:
        """Add one token to every row.

        Args:
            tokens: one a row.

        Returns:
            (n, vocabulary): logits of the tokens that follow.
        """
        cache = self.cache
        positions = [[cache.prefix + length] for length in cache.lengths]
        return self._call("step", [[token] for token in tokens], positions)

    def _read(self, kind: str, ids: list[int], position: int) -> Tensor | None:
        """Read a text piece by piece; the logits of its end."""
        size = CPU_TOKENS if self._model.device.type == "cpu" else GPU_TOKENS
        logits = None
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            first = position + start
            logits = self._call(kind, [piece], [list(range(first, first + len(piece)))])
        return logits

    def _call(self, kind: str, ids: list[list[int]], positions: list[list[int]]) -> Tensor:
        self.cache.enter(kind, len(ids[0]))
        call: Any = self._model
        output = call(
            input_ids=torch.tensor(ids, device=self._model.device),
            position_ids=torch.tensor(positions, device=self._model.device),
            use_cache=False,
            logits_to_keep=1,
            paged_cache=self.cache,
        )
        self.cache.leave()
        return output.logits[:, -1]


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    paged_cache: PagedCache | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' layers call; see :class:`PagedModel`.

    Args:
        attention_mask: must be None.
        paged_cache: where the keys and values of the rows lie.
        sliding_window: tokens each token sees, itself included; None for its whole row.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).

    Returns:
        (n, T, H, D) and None in place of attention weights.

    Raises:
        ValueError: a mask, no cache, dropout, a bias or attention sinks, or a layer that does not say which layer it
            is or how far it sees.
    """
    if paged_cache is None:
        raise ValueError("attention over a paged cache needs one")
    layer = layer_index(module, attention_mask, dropout, sliding_window, kwargs)
    scale = scaling if scaling is not None else query.shape[3] ** -0.5
    return paged_cache.attend(layer, query, key, value, scale, sliding_window, softcap), None


AttentionInterface.register(NAME, paged_attention)
