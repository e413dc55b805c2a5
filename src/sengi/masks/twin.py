"""A tokenizer with other names for its control tokens: what people type can never be one."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer

from sengi.errors import MaskError
from sengi.masks.place import place
from sengi.masks.span import Layout, Span

_PRIVATE = 0xF0000  # plane 15: 65,534 private-use characters, one for each control token
_CUT = chr(0x10FFFD)
_RESERVED = re.compile(f"[{chr(_PRIVATE)}-{chr(0xFFFFD)}{_CUT}]")


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


def refuse_reserved(text: str) -> None:
    """Refuse a text with the characters that the twin uses.

    Raises:
        MaskError: ``special_token_in_content``.
    """
    if _RESERVED.search(text):
        raise MaskError(
            "special_token_in_content",
            "the text holds private-use characters (plane 15) beside a control token or a cut: take them out",
        )
