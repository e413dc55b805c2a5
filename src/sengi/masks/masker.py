"""Conversations to token ids and loss masks, with the model's own tokenizer and chat template.

Supervised are the assistant's turns as the template renders them, up to and with the token that closes the
turn. Headers, other roles and the white space behind the closing token are not. What is not certain is refused
by name. `docs/masks.md` tells the rules.

Example:
    >>> masker = Masker(tokenizer)
    >>> sample = masker.sample(Conversation(({"role": "user", "content": "Hi"},
    ...                                      {"role": "assistant", "content": "Hello"})))
    >>> tokenizer.decode(sample.input_ids[sample.loss_mask == 1])
    'Hello<|im_end|>'
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sengi.conversation import Conversation, Sample
from sengi.errors import MaskError, ModelError
from sengi.masks.batch import Block, QuickMismatch, Work
from sengi.masks.encode import Encoder
from sengi.masks.layout import LayoutMaker
from sengi.masks.notes import closing_text, structural_tokens, template_notes
from sengi.masks.quick import Quick, Shape
from sengi.masks.skeleton import Control
from sengi.masks.span import Layout
from sengi.masks.template import ChatTemplate, TimeLimit

MASK_VERSION = 1  # raise it when the same conversation gives other ids or another mask
COMPARED = 256  # of as many quick rows one goes the full way, too, and the first of each shape


class Masker:
    """Makes samples under one tokenizer and its chat template.

    Args:
        tokenizer: a fast transformers tokenizer.
        render_seconds: CPU time that rendering one conversation may take.
        today: the date for templates that print it; default: the date at construction. Keep it (`date`) to
            make the same ids on another day.
        quick: put plain conversations together without running the template where that is proven to be the same.

    Attributes:
        counts: repairs by name: ``control_text_kept_as_text`` (a message held the text of a control token),
            ``prompt_border_cut`` (a token would have reached from the prompt into the answer),
            ``reasoning_left_out_by_template`` (conversations; Qwen3 leaves out that of earlier turns).

    Raises:
        ModelError: no fast tokenizer, or the template does not compile or breaks its limits.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        render_seconds: float = 10.0,
        today: datetime.date | None = None,
        quick: bool = True,
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelError(
                f"{_name(tokenizer)}: {type(tokenizer).__name__} is not a fast tokenizer: add its tokenizer.json"
            )
        self._tokenizer, self._backend = tokenizer, backend
        self._limit = TimeLimit(render_seconds)
        self._today = today or datetime.date.today()
        self.counts: Counter[str] = Counter()
        numbers = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
        added = backend.get_added_tokens_decoder().values()
        self._template = self._compile(None)
        names = {token.content for token in added if token.special}
        if self._template is not None:
            with self._limit:
                names |= structural_tokens(self._template, {token.content for token in added})
        pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")
        self._control = Control(pattern)
        if self._template is not None:
            with self._limit:
                self._control = Control(pattern, closing_text(self._template, pattern))
        self._encoder = Encoder(backend, pattern)
        self._makers: dict[str, LayoutMaker] = {}
        self._quick: Quick | None = None
        if quick and self._template is not None:
            ids = {name: numbers[name] for name in names}
            self._quick = Quick(self._template, self._maker(None), self._control, ids, self._encoder.header)
        self._compared: set[Shape] = set()
        self._quick_rows = 0

    def sample(self, conversation: Conversation) -> Sample:
        """Token ids and loss mask of one conversation.

        Raises:
            MaskError: its mask is not certain; ``reason`` names why.
            ModelError: it is a chat and the tokenizer has no chat template.
        """
        result = self.samples([conversation])[0]
        if isinstance(result, MaskError):
            raise result
        return result

    def samples(self, conversations: Iterable[Conversation]) -> list[Sample | MaskError]:
        """Samples of many conversations, tokenized in one batch.

        Args:
            conversations: a few hundred at once use all threads of the tokenizer.

        Returns:
            One entry a conversation, in order: its sample, or why it has none.

        Raises:
            ModelError: as `sample`.
        """
        rows = list(conversations)
        try:
            return self.block(rows).samples()
        except QuickMismatch:
            self._quick = None
            return self.block(rows).samples()

    def block(self, rows: Sequence[Conversation]) -> Block:
        """As `samples`, end to end in one piece.

        Raises:
            QuickMismatch: as `finish`.
        """
        return self.finish(self.encode(self.prepare(rows)))

    def prepare(self, rows: Sequence[Conversation]) -> Work:
        """First of three steps for a batch: render. Call it in the main thread, where the time limit works."""
        work = Work(list(rows))
        with self._limit:
            for number, row in enumerate(work.rows):
                self._limit.row += 1
                found = self._quick.text(row) if self._quick is not None and row.kind == "chat" else None
                if found is None:
                    work.full.append((number, self._layout(row)))
                else:
                    work.quick.append((number, found[0]))
                    work.texts.append(found[1])
        return work

    def encode(self, work: Work) -> Work:
        """Second step: tokenize, on all of the tokenizer's threads; may run beside the other steps of other batches."""
        whole = [layout.text for _, layout in work.full if isinstance(layout, Layout) and not layout.unsafe]
        if work.texts:
            work.tokens = self._encoder.ids(work.texts)
        work.encodings = self._encoder.batch(whole)
        return work

    def finish(self, work: Work) -> Block:
        """Third step: the masks.

        Raises:
            QuickMismatch: make everything again with ``quick=False``; a sample of rows showed that it is needed.
            ModelError: as `sample`.
        """
        if self._quick is None or work.tokens is None:
            return Block.of(self._finish_full(work))
        ids, lengths = work.tokens
        mask, good = self._quick.masks([shape for _, shape in work.quick], ids, lengths)
        block = Block(ids, mask, lengths, {})
        right = good.tolist()
        self._compare_some(work, block, right)
        if not work.full and all(right):
            return block
        results = dict(zip((number for number, _ in work.full), self._finish_full(work), strict=True))
        for (number, _), sample, fits in zip(work.quick, block.samples(), right, strict=True):
            results[number] = sample if fits else self._in_full(work.rows[number])
        return Block.of([results[number] for number in range(len(work.rows))])

    def _compare_some(self, work: Work, block: Block, right: list[bool]) -> None:
        """Send the first row of each shape and one in `COMPARED` the full way, too."""
        starts = np.cumsum(block.lengths) - block.lengths
        for k, (number, shape) in enumerate(work.quick):
            if (self._quick_rows + k) % COMPARED and shape in self._compared:
                continue
            if not right[k]:
                continue
            self._compared.add(shape)
            row, tokens = work.rows[number], slice(starts[k], starts[k] + block.lengths[k])
            full = self._in_full(row)
            if not isinstance(full, Sample) or not (
                np.array_equal(full.input_ids, block.ids[tokens]) and np.array_equal(full.loss_mask, block.mask[tokens])
            ):
                raise QuickMismatch(row.place)
        self._quick_rows += len(work.quick)

    def _in_full(self, row: Conversation) -> Sample | MaskError:
        """One row the full way."""
        with self._limit:
            self._limit.row += 1
            work = Work([row], full=[(0, self._layout(row))])
        return self._finish_full(self.encode(work))[0]

    def _finish_full(self, work: Work) -> list[Sample | MaskError]:
        encodings = iter(work.encodings)
        results: list[Sample | MaskError] = []
        for number, layout in work.full:
            if isinstance(layout, MaskError):
                results.append(layout)
                continue
            encoding = None if layout.unsafe else next(encodings)
            try:
                results.append(self._encode(work.rows[number], layout, encoding))
            except MaskError as error:
                results.append(_at(work.rows[number], error))
        return results

    @property
    def closing_token_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant turn under this template; empty where it ends with ordinary text or not at all."""
        if self._template is None:
            eos: int | None = self._tokenizer.eos_token_id
            return () if eos is None else (eos,)
        closing = self._control.closing
        return () if closing is None else (self._tokenizer.convert_tokens_to_ids(closing),)

    @property
    def settings(self) -> tuple[datetime.date, bool]:
        """The arguments ``today`` and ``quick`` of a masker in another process that shall do the same."""
        return self._today, self._quick is not None

    @property
    def date(self) -> datetime.date | None:
        """The date that the template prints; None where it prints none."""
        return self._today if self._template is not None and self._template.uses_date else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides ids and masks: tokenizer, templates, special tokens, date, `MASK_VERSION`."""
        self._encoder.reset()
        parts = [
            f"mask {MASK_VERSION}",
            repr(self._tokenizer.chat_template),
            self._backend.to_str(),
            repr(sorted(self._tokenizer.special_tokens_map.items(), key=str)),
            str(self.date),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about this template, one sentence each."""
        if self._template is None:
            return ()
        with self._limit:
            notes = template_notes(self._template, self._control, self._tokenizer.eos_token)
        if self._template.uses_date:
            notes.append(f"the template prints the date, here {self._today}: it is part of the fingerprint")
        return tuple(notes)

    def _layout(self, row: Conversation) -> Layout | MaskError:
        """Render one row; its error carries its place."""
        try:
            if row.kind == "text":
                unsafe = self._control.pattern.search(row.text) is not None
                return Layout(row.text, [], [(0, len(row.text))], unsafe)
            return self._maker(row.tools).layout(row)
        except MaskError as error:
            return _at(row, error)

    def _maker(self, tools: Sequence[Any] | None) -> LayoutMaker:
        """Layouts under the template for chats with or without tools (a tokenizer may have one of each)."""
        if self._template is None:
            raise ModelError(
                f"{_name(self._tokenizer)}: the tokenizer has no chat template, so chats cannot be rendered: add "
                "chat_template.jinja to the model folder, train from an instruct model, or use plain text rows"
            )
        template = self._template
        if tools is not None and isinstance(self._tokenizer.chat_template, dict):
            template = self._compile(list(tools)) or template
        if template.text not in self._makers:
            self._makers[template.text] = LayoutMaker(template, self._control)
        return self._makers[template.text]

    def _compile(self, tools: list[Any] | None) -> ChatTemplate | None:
        if not self._tokenizer.chat_template:
            return None
        try:
            text = self._tokenizer.get_chat_template(None, tools)
        except ValueError as error:
            raise ModelError(f"{_name(self._tokenizer)}: {error}") from error
        return ChatTemplate(text, self._tokenizer.special_tokens_map, self._today)

    def _encode(self, row: Conversation, layout: Layout, encoding: Any) -> Sample:
        if row.kind == "text":
            if layout.unsafe:
                self.counts["control_text_kept_as_text"] += 1
            return self._encoder.document(layout, encoding, self._tokenizer.eos_token_id)
        if layout.unsaid:
            self.counts["reasoning_left_out_by_template"] += 1
        sample = None if encoding is None else self._encoder.sample(layout, encoding)
        if sample is None:
            sample = self._encoder.sample_by_twin(layout)
            self.counts["control_text_kept_as_text" if layout.unsafe else "prompt_border_cut"] += 1
        return sample


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "tokenizer")


def _at(row: Conversation, error: MaskError) -> MaskError:
    return MaskError(error.reason, f"{row.place}: {error}")
