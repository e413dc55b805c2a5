"""From a layout's characters to token ids and mask: one tokenization of the whole text, checked at every border.

The ids before a supervised turn must be the ids of the prompt at inference. Control tokens split a text hard, so
only the tokens between the last control token and the border (``assistant`` and a newline, mostly) can
change when the answer follows; they are compared with the header encoded alone. Where they differ (the
header's last characters merge with the answer's first) and where a message holds the text of a control token,
the conversation is encoded by a *twin* of the tokenizer: its control tokens have private-use names, and it has
one more token, a cut.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding, Tokenizer

from sengi.data.conversation import Sample
from sengi.data.mask_span import Layout, Span
from sengi.errors import MaskError

_PRIVATE = 0xF0000  # plane 15: 65,534 private-use characters, one for each control token
_CUT = chr(0x10FFFD)
_RESERVED = re.compile(f"[{chr(_PRIVATE)}-{chr(0xFFFFD)}{_CUT}]")
_MAX_HEADERS = 10_000


class Encoder:
    """Encodes layouts with one tokenizer backend.

    Args:
        backend: the tokenizer's Rust object; its truncation and padding are switched off.
        pattern: matches the text of every control token.
    """

    def __init__(self, backend: Tokenizer, pattern: re.Pattern[str]) -> None:
        self._backend, self._pattern = backend, pattern
        self._headers: dict[str, list[int]] = {}
        self.reset()

    def reset(self) -> None:
        """Undo what calls through transformers leave set on the shared backend."""
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        self._backend.encode_special_tokens = False

    def batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode texts without added special tokens, on all of the tokenizer's threads."""
        self.reset()
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def sample(self, layout: Layout, encoding: Encoding) -> Sample | None:
        """Place the spans of a layout in the encoding of its text; None where a prompt border is not a token border."""
        ids = encoding.ids
        turns = place(encoding, ids, layout.text, layout.spans, self._header)
        return None if turns is None else _sample(np.array(ids, dtype=np.int32), turns)

    def sample_by_twin(self, layout: Layout) -> Sample:
        """As `sample`, exact for texts with control tokens in messages and for borders inside a token.

        Raises:
            MaskError: ``special_token_in_content`` or ``boundary_token``: not exact with this tokenizer.
        """
        _refuse_reserved(layout.text)
        whole, turns = self._twin.encode(layout, {})
        if turns is not None:
            return _sample(whole, turns)
        borders = [span.start for span in layout.spans if span.border]
        for drop in (0, 1):  # 1: a tokenizer that puts a space before every stretch already has the answer's own
            cuts = {at: drop if layout.text.startswith(" ", at) else 0 for at in borders}
            ids, turns = self._twin.encode(layout, cuts)
            if turns is not None and self._decode(ids) == self._decode(whole):
                return _sample(ids, turns)
        raise MaskError(
            "boundary_token",
            "a token reaches from the header into the answer and cutting there changes the text: strip the white space "
            "at the answer's begin",
        )

    def ids_by_twin(self, layout: Layout) -> NDArray[np.int32]:
        """Ids, shape (T,), of a plain text in which nothing is a control token.

        Raises:
            MaskError: ``special_token_in_content``.
        """
        _refuse_reserved(layout.text)
        return self._twin.encode(layout, {})[0]

    def _decode(self, ids: NDArray[np.int32]) -> str:
        return self._backend.decode(ids.tolist(), skip_special_tokens=False)

    def _header(self, text: str) -> list[int]:
        """Ids of a header, from its control token to the border, as at inference."""
        header = self._headers.get(text)
        if header is None:
            header = self._backend.encode(text, add_special_tokens=False).ids
            if len(text) < 200 and len(self._headers) < _MAX_HEADERS:
                self._headers[text] = header
        return header

    @cached_property
    def _twin(self) -> Twin:
        return Twin(self._backend, self._pattern)


class Twin:
    """A tokenizer with the same ids in which no text that people type can be a control token.

    Args:
        backend: the tokenizer.
        pattern: matches the text of every control token.

    Raises:
        MaskError: ``special_token_in_content``: this kind of tokenizer cannot be rebuilt with other names.
    """

    def __init__(self, backend: Tokenizer, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        source = json.loads(backend.to_str())
        names = {}
        for number, token in enumerate(t for t in source["added_tokens"] if pattern.fullmatch(t["content"])):
            names[token["content"]] = chr(_PRIVATE + number)
            token["content"] = names[token["content"]]
        model = source["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        self._unknown = model.get("unk_token")  # the model may write it for any text, so it is not counted
        if self._unknown in names:
            model["unk_token"] = names[self._unknown]
        self._names = names
        self._tokenizer = Tokenizer.from_str(json.dumps(source))
        self._tokenizer.add_tokens([AddedToken(_CUT, normalized=False)])
        cut = self._tokenizer.token_to_id(_CUT)
        assert cut is not None  # added on the line above
        self._cut: int = cut
        self._control_ids = np.array(
            [backend.token_to_id(name) for name in names if name != self._unknown], dtype=np.int32
        )
        if any(self._tokenizer.token_to_id(new) != backend.token_to_id(old) for old, new in names.items()):
            raise MaskError("special_token_in_content", "a message holds a control token's text: change that text")

    def encode(self, layout: Layout, cuts: dict[int, int]) -> tuple[NDArray[np.int32], list[tuple[int, int]] | None]:
        """Encode a layout; only the template's own control tokens are control tokens.

        Args:
            layout: rendered text, spans and places of the messages.
            cuts: character positions at which no token may reach over, each with the number of characters
                (0 or 1, a space) to leave out behind it.

        Returns:
            Ids, shape (T,), and the supervised token ranges; None where a prompt border is inside a token.

        Raises:
            MaskError: ``special_token_in_content``: the tokenizer makes a control token of plain text.
        """
        text, move, controls = self._rename(layout, cuts)
        spans = [
            Span(
                move(span.start),
                move(span.end),
                -1 if span.anchor < 0 else move(span.anchor),
                -1 if span.closing < 0 else move(span.closing),
                span.border,
            )
            for span in layout.spans
        ]
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        listed = encoding.ids
        ids = np.array(listed, dtype=np.int32)
        if int(np.isin(ids, self._control_ids).sum()) != controls:
            raise MaskError(
                "special_token_in_content",
                "a message holds the text of a control token that this tokenizer cannot keep as text: change it",
            )
        turns = place(encoding, listed, text, spans, self._header)
        kept = np.concatenate(([0], np.cumsum(ids != self._cut)))
        if turns is not None:
            turns = [(int(kept[a]), int(kept[b])) for a, b in turns]
        return ids[ids != self._cut], turns

    def _header(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _rename(self, layout: Layout, cuts: dict[int, int]) -> tuple[str, Callable[[int], int], int]:
        """The text under the twin's names, the map of positions, and how many control tokens it holds."""
        events = [(at, at + drop, _CUT) for at, drop in cuts.items()]
        controls, at = 0, 0
        for start, end in [*layout.contents, (len(layout.text), len(layout.text))]:
            for match in self._pattern.finditer(layout.text[at:start]):
                events.append((at + match.start(), at + match.end(), self._names[match[0]]))
                controls += match[0] != self._unknown
            at = end
        events.sort()
        pieces: list[str] = []
        old, new, size, at = [0], [0], 0, 0
        for start, end, name in events:
            pieces += (layout.text[at:start], name)
            size += start - at + len(name)
            at = end
            old.append(start if name == _CUT else end)
            new.append(size)
            if end > start and name == _CUT:
                old.append(end)
                new.append(size)
        pieces.append(layout.text[at:])

        def move(position: int) -> int:
            k = bisect.bisect_right(old, position) - 1
            return new[k] + position - old[k]

        return "".join(pieces), move, controls


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


def _refuse_reserved(text: str) -> None:
    if _RESERVED.search(text):
        raise MaskError(
            "special_token_in_content",
            "the text holds private-use characters (plane 15) beside a control token or a cut: take them out",
        )


def _sample(ids: NDArray[np.int32], turns: Sequence[tuple[int, int]]) -> Sample:
    mask = np.zeros(len(ids), dtype=np.uint8)
    for first, last in turns:
        mask[first:last] = 1
    if not mask[1:].any():
        raise MaskError("no_supervised_token", "no token of this conversation is supervised")
    return Sample(ids, mask)
