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

from sengi.data.conversation import Conversation, Sample
from sengi.data.mask_encode import Encoder
from sengi.data.mask_layout import LayoutMaker
from sengi.data.mask_skeleton import Control
from sengi.data.mask_span import Layout
from sengi.data.template import ChatTemplate, TimeLimit
from sengi.errors import MaskError, ModelError

MASK_VERSION = 1  # raise it when the same conversation gives other ids or another mask
_USER, _ASSISTANT = {"role": "user", "content": "\ue000u\ue001"}, {"role": "assistant", "content": "\ue000a\ue001"}
_PLAIN_TURN = re.compile("\ue000a\ue001(.*)", re.DOTALL)


class Masker:
    """Makes samples under one tokenizer and its chat template.

    Args:
        tokenizer: a fast transformers tokenizer.
        render_seconds: CPU time that rendering one conversation may take.
        today: the date for templates that print it; default: the date at construction. Keep it (`date`) to
            make the same ids on another day.

    Attributes:
        counts: repairs by name: ``control_text_kept_as_text`` (a message held the text of a control token),
            ``prompt_border_cut`` (a token would have reached from the prompt into the answer),
            ``reasoning_left_out_by_template`` (conversations; Qwen3 leaves out that of earlier turns).

    Raises:
        ModelError: no fast tokenizer, or the template does not compile or breaks its limits.
    """

    def __init__(self, tokenizer: Any, *, render_seconds: float = 10.0, today: datetime.date | None = None) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelError(
                f"{_name(tokenizer)}: {type(tokenizer).__name__} is not a fast tokenizer: add its tokenizer.json"
            )
        self._tokenizer, self._backend = tokenizer, backend
        self._limit = TimeLimit(render_seconds)
        self._today = today or datetime.date.today()
        self.counts: Counter[str] = Counter()
        added = backend.get_added_tokens_decoder().values()
        self._template = self._compile(None)
        names = {token.content for token in added if token.special}
        if self._template is not None:
            with self._limit:
                names |= _structural(self._template, {token.content for token in added})
        pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")
        self._control = Control(pattern)
        if self._template is not None:
            with self._limit:
                self._control = Control(pattern, _closing_text(self._template, pattern))
        self._encoder = Encoder(backend, pattern)
        self._makers: dict[str, LayoutMaker] = {}

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
        with self._limit:
            layouts = [self._layout(row) for row in rows]
        whole = [layout.text for layout in layouts if isinstance(layout, Layout) and not layout.unsafe]
        encodings = iter(self._encoder.batch(whole))
        results: list[Sample | MaskError] = []
        for row, layout in zip(rows, layouts, strict=True):
            if isinstance(layout, MaskError):
                results.append(layout)
                continue
            encoding = None if layout.unsafe else next(encodings)
            try:
                results.append(self._encode(row, layout, encoding))
            except MaskError as error:
                results.append(_at(row, error))
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
        notes = []
        with self._limit:
            prompt = _try_render(self._template, [_USER], True)
            plain = _try_render(self._template, [_USER], False)
            whole = _try_render(self._template, [_USER, _ASSISTANT], False) or ""
        header = whole[len(prompt) : whole.find(_ASSISTANT["content"])] if prompt and whole.startswith(prompt) else ""
        if header.strip() and prompt == plain:
            notes.append(
                f"the template ignores add_generation_prompt: the header {header!r} is masked, so at inference the "
                "prompt must end with it"
            )
        if prompt and prompt != plain and whole and not whole.startswith(prompt):
            notes.append(
                "the generation prompt writes text that the template leaves out of a finished answer "
                f"({prompt[len(plain or '') :]!r}): inference starts otherwise than training"
            )
        if self._control.closing is None:
            notes.append("the template ends a turn with no control token: the model will not learn where to stop")
        elif self._control.closing != self._tokenizer.eos_token:
            notes.append(
                f"turns end with {self._control.closing}, not with eos ({self._tokenizer.eos_token}): stop there"
            )
        if self._template.uses_date:
            notes.append(f"the template prints the date, here {self._today}: it is part of the fingerprint")
        return tuple(notes)

    def _layout(self, row: Conversation) -> Layout | MaskError:
        """Render one row; its error carries its place."""
        try:
            if row.kind == "text":
                unsafe = self._control.pattern.search(row.text) is not None
                return Layout(row.text, [], [(0, len(row.text))], unsafe)
            self._limit.row += 1
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
            return self._document(layout, encoding)
        if layout.unsaid:
            self.counts["reasoning_left_out_by_template"] += 1
        sample = None if encoding is None else self._encoder.sample(layout, encoding)
        if sample is None:
            sample = self._encoder.sample_by_twin(layout)
            self.counts["control_text_kept_as_text" if layout.unsafe else "prompt_border_cut"] += 1
        return sample

    def _document(self, layout: Layout, encoding: Any) -> Sample:
        """A plain text: every token supervised, begin and end as the tokenizer adds them, closed by eos."""
        if not layout.text:
            raise MaskError("no_supervised_token", "the document is empty")
        if encoding is None:
            body = self._encoder.ids_by_twin(layout)
            self.counts["control_text_kept_as_text"] += 1
        else:
            body = np.array(encoding.ids, dtype=np.int32)
        before, after = self._frame
        ids = np.concatenate((before, body, after)).astype(np.int32)
        if len(ids) < 2:
            raise MaskError("no_supervised_token", "the document is a single token: nothing to predict")
        return Sample(ids, np.ones(len(ids), dtype=np.uint8))

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer puts before and behind a text, with eos at the end where there is one."""
        body = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        at = next(i for i in range(len(full)) if full[i : i + len(body)] == body)
        before, after = full[:at], full[at + len(body) :]
        eos = self._tokenizer.eos_token_id
        return before, after if eos is None or eos in after else [*after, eos]


def _try_render(template: ChatTemplate, messages: list[dict[str, str]], ask: bool) -> str | None:
    """A probe's rendering, or None where the template refuses the probe."""
    try:
        return template.render(messages, None, ask)
    except MaskError as error:
        if error.reason == "template_limits":
            raise ModelError(f"{error.reason}: {error}") from error
        return None


def _structural(template: ChatTemplate, added: set[str]) -> set[str]:
    """Added tokens not marked special that the template writes around messages: they are control tokens too."""
    text = _try_render(template, [_USER, _ASSISTANT, _USER], False) or _try_render(template, [_USER, _ASSISTANT], False)
    # Runs of white space and plain words can be added tokens too; those never steer a conversation.
    marks = {token for token in added if token.strip() and not token.strip().isalnum()}
    return {token for token in marks if text and token in text}


def _closing_text(template: ChatTemplate, pattern: re.Pattern[str]) -> str | None:
    """The control token that follows a plain answer at the end of a conversation."""
    system = {"role": "system", "content": "s"}
    for messages in ([_USER, _ASSISTANT], [system, _USER, _ASSISTANT]):
        text = _try_render(template, messages, False)
        if text and (turn := _PLAIN_TURN.search(text)):
            token = pattern.search(turn[1])
            return token[0] if token else None
    return None


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "tokenizer")


def _at(row: Conversation, error: MaskError) -> MaskError:
    return MaskError(error.reason, f"{row.place}: {error}")
