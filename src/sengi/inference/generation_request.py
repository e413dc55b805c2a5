"""What a model is asked to write."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One text to be written.

    Attributes:
        prompt: token ids, at least one.
        max_new_tokens: longest text, in tokens.
        stop: strings that end the text; they are not part of it.
        temperature: 0 takes the likeliest token; above, tokens are drawn at this temperature.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: of the draws.
    """

    prompt: list[int]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
