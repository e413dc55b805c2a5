"""From the characters of supervised stretches to their tokens, in an encoding that knows each token's characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from sengi.masks.span import Span


def place(
    encoding: Encoding,
    ids: list[int],
    text: str,
    spans: Sequence[Span],
    header_of: Callable[[str], list[int]],
) -> list[tuple[int, int]] | None:
    """Token ranges of character spans.

    Args:
        encoding: of ``text``.
        ids: its ids, of length T.
        text: the rendering.
        spans: supervised stretches.
        header_of: ids of a header encoded alone.

    Returns:
        (first, behind last) token of each span that has a token, or None where a prompt border is inside a token.
    """
    turns: list[tuple[int, int]] = []
    offsets: NDArray[np.int64] | None = None
    for span in spans:
        if offsets is None and (not span.border or span.closing < 0):
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        if span.border:
            first = encoding.char_to_token(span.anchor) if span.anchor >= 0 else 0
            header = header_of(text[max(span.anchor, 0) : span.start])
            if first is None or ids[first : first + len(header)] != header:
                return None
            first += len(header)
        else:
            assert offsets is not None
            first = _first_token(offsets, text, span.start)
        if span.closing >= 0:
            closing = encoding.char_to_token(span.closing)
            if closing is None:
                return None
            last = closing + 1
        else:
            assert offsets is not None
            last = _last_token(offsets, text, span.end)
        if first < last:
            turns.append((first, last))
    return turns


def _first_token(offsets: NDArray[np.int64], text: str, start: int) -> int:
    """First token of a text at ``start``; a token may begin with white space before it, not with a header."""
    blank = len(text[:start].rstrip())
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    if first < len(offsets) and offsets[first, 0] < blank:
        first += 1
    return first


def _last_token(offsets: NDArray[np.int64], text: str, end: int) -> int:
    """Behind the last token of a text up to ``end``; a token may end with white space behind it, not with a header."""
    last = int(np.searchsorted(offsets[:, 0], end, side="left"))
    if last and text[end : offsets[last - 1, 1]].strip():
        last -= 1
    return last
