"""What a rendered conversation is: its text and the character positions of what is supervised."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from sengi.errors import MaskError


@dataclass(frozen=True, slots=True)
class Span:
    """A supervised stretch, in characters of the rendered text.

    Attributes:
        start: first character.
        end: behind the last.
        anchor: begin of the last control token before ``start``; -1: there is none.
        closing: begin of the closing control token; -1: the stretch ends with ordinary text.
        border: at inference the prompt ends at ``start``, so the tokens before it must be the prompt's.
    """

    start: int
    end: int
    anchor: int = -1
    closing: int = -1
    border: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered conversation.

    Attributes:
        text: the rendering.
        spans: what is supervised, in order.
        contents: where message texts stand in it; control tokens in there are ordinary text.
        unsafe: a message text holds the text of a control token.
        unsaid: number of messages whose reasoning the template leaves out.
    """

    text: str
    spans: list[Span]
    contents: list[tuple[int, int]]
    unsafe: bool
    unsaid: int = 0


def checked(spans: list[Span]) -> list[Span]:
    """The spans that are not empty.

    Raises:
        MaskError: there is none, or two overlap.
    """
    spans = [span for span in spans if span.start < span.end]
    if not spans:
        raise MaskError("no_supervised_token", "the template leaves nothing of the assistant's turns to train on")
    if any(a.end > b.start for a, b in itertools.pairwise(spans)):
        raise MaskError("content_changed", "two supervised turns overlap in the rendered text")
    return spans
