"""From a layout's characters to token ids and mask: one tokenization of the whole text, checked at every border.

The ids before a supervised turn must be the ids of the prompt at inference. Control tokens split a text hard, so
only the tokens between the last control token and the border (``assistant`` and a newline, mostly) can
change when the answer follows; they are compared with the header encoded alone. Where they differ (the
header's last characters merge with the answer's first) and where a message holds the text of a control token,
the conversation is encoded by a *twin* of the tokenizer: its control tokens have private-use names, and it has
one more token, a cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from sengi.conversation import Sample
from sengi.errors import MaskError
from sengi.masks.place import place
from sengi.masks.span import Layout
from sengi.masks.twin import Twin, refuse_reserved
from sengi.masks.word_memo import WordMemo, can_cut, ids_of

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
        if self._backend.encode_special_tokens:  # only then: another thread may be encoding
            self._backend.encode_special_tokens = False

    def batch(self, texts: list[str]) -> list[Encoding]:
        """Encode texts without added special tokens, on all of the tokenizer's threads."""
        self.reset()
        return self._backend.encode_batch(texts, add_special_tokens=False)

    def ids(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """As `batch`, but only the ids of all texts end to end, shape (T,), and the number of each text's, shape (n,).

        Call it from one thread at a time.
        """
        self.reset()
        if self._memo is not None:
            return self._memo.encode(texts)
        return ids_of(self._backend.encode_batch_fast(texts, add_special_tokens=False))

    def sample(self, layout: Layout, encoding: Encoding) -> Sample | None:
        """Place the spans of a layout in the encoding of its text; None where a prompt border is not a token border."""
        ids = encoding.ids
        turns = place(encoding, ids, layout.text, layout.spans, self.header)
        return None if turns is None else _sample(np.array(ids, dtype=np.int32), turns)

    def sample_by_twin(self, layout: Layout) -> Sample:
        """As `sample`, exact for texts with control tokens in messages and for borders inside a token.

        Raises:
            MaskError: ``special_token_in_content`` or ``boundary_token``: not exact with this tokenizer.
        """
        refuse_reserved(layout.text)
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

    def document(self, layout: Layout, encoding: Encoding | None, eos: int | None) -> Sample:
        """A plain text: every token supervised, begin and end as the tokenizer adds them, closed by eos.

        Args:
            layout: the text.
            encoding: of it; None: a control token's text stands in it.
            eos: id of the end-of-text token.

        Raises:
            MaskError: ``no_supervised_token`` or ``special_token_in_content``.
        """
        if not layout.text:
            raise MaskError("no_supervised_token", "the document is empty")
        if encoding is None:
            refuse_reserved(layout.text)
            body = self._twin.encode(layout, {})[0]
        else:
            body = np.array(encoding.ids, dtype=np.int32)
        before, after = self._frame
        closing = [] if eos is None or eos in after else [eos]
        ids = np.concatenate((before, body, after, closing)).astype(np.int32)
        if len(ids) < 2:
            raise MaskError("no_supervised_token", "the document is a single token: nothing to predict")
        return Sample(ids, np.ones(len(ids), dtype=np.uint8))

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before and behind a text."""
        body = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        at = next(i for i in range(len(full)) if full[i : i + len(body)] == body)
        return full[:at], full[at + len(body) :]

    def _decode(self, ids: NDArray[np.int32]) -> str:
        return self._backend.decode(ids.tolist(), skip_special_tokens=False)

    def header(self, text: str) -> list[int]:
        """Ids of a header, from its control token to the border, as at inference."""
        header = self._headers.get(text)
        if header is None:
            header = self._backend.encode(text, add_special_tokens=False).ids
            if len(text) < 200 and len(self._headers) < _MAX_HEADERS:
                self._headers[text] = header
        return header

    @cached_property
    def _memo(self) -> WordMemo | None:
        return WordMemo(self._backend) if can_cut(self._backend) else None

    @cached_property
    def _twin(self) -> Twin:
        return Twin(self._backend, self._pattern)


def _sample(ids: NDArray[np.int32], turns: Sequence[tuple[int, int]]) -> Sample:
    mask = np.zeros(len(ids), dtype=np.uint8)
    for first, last in turns:
        mask[first:last] = 1
    if not mask[1:].any():
        raise MaskError("no_supervised_token", "no token of this conversation is supervised")
    return Sample(ids, mask)
