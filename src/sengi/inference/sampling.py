"""The next token of each row: the likeliest, or one drawn with the row's own seed."""

from __future__ import annotations

import torch
from torch import Tensor


class Sampler:
    """Chooses the tokens of one text.

    Args:
        temperature: 0 takes the likeliest token; above, tokens are drawn from the distribution at this temperature.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: of the draws; a text has a generator of its own, so the process's random state is neither read nor
            moved.
        device: of the logits.
    """

    def __init__(self, temperature: float, top_p: float, seed: int, device: torch.device) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._generator = torch.Generator(device).manual_seed(seed) if temperature > 0 else None

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn and not just taken."""
        return self._generator is not None

    def draw(self, logits: Tensor) -> int:
        """A token for the logits (vocabulary,) of one row."""
        probabilities = (logits.float() / self._temperature).softmax(-1)
        if self._top_p < 1:
            ordered, places = probabilities.sort(descending=True, stable=True)
            # Kept while what is likelier has not reached the share: the likeliest token always is.
            ordered[ordered.cumsum(-1) - ordered >= self._top_p] = 0
            probabilities = torch.zeros_like(probabilities).scatter(0, places, ordered)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def next_tokens(logits: Tensor, samplers: list[Sampler]) -> list[int] | None:
    """One token a row; None where a row's logits have a NaN or no finite largest value: nothing can be chosen.

    Args:
        logits: (n, vocabulary).
        samplers: one a row.
    """
    largest, places = logits.max(dim=-1)  # NaN where there is one
    if not bool(largest.isfinite().all()):
        return None
    tokens: list[int] = places.tolist()
    return [
        sampler.draw(row) if sampler.draws else token
        for token, row, sampler in zip(tokens, logits, samplers, strict=True)
    ]
