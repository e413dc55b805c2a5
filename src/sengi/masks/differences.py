"""Finding the turns of one conversation by comparing renderings, for templates that look into the texts.

A template may cut old reasoning out of an answer or wrap it by what it holds; then the skeleton of the shape does
not fit. A turn is still certain when the rendering up to and including it begins with its own prompt and is a prefix
of the whole, or when a rendering with only its text replaced agrees everywhere else. What neither proves is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sengi.errors import MaskError
from sengi.masks.skeleton import Control, blocks_of_turn
from sengi.masks.slots import Slot, read_slot, slot_paths, with_slots
from sengi.masks.span import Layout, Span, checked
from sengi.masks.template import ChatTemplate, Message

_MARK = "\ue000mark\ue001"


class Differences:
    """The turns of one conversation.

    Args:
        template: the model's chat template.
        control: the tokenizer's control tokens.
        messages: prepared messages.
        tools: tool schemas or None.
        rendered: what the template gives for them.
    """

    def __init__(
        self,
        template: ChatTemplate,
        control: Control,
        messages: list[Message],
        tools: Sequence[dict[str, Any]] | None,
        rendered: str,
    ) -> None:
        self._template, self._control = template, control
        self._messages, self._tools, self._rendered = messages, tools, rendered
        self._slots = slot_paths(messages)

    def layout(self, trained: list[int], opened: set[int]) -> Layout:
        """Layout by differences.

        Args:
            trained: assistant messages whose turns are supervised.
            opened: other messages whose text is supervised (``unmask``).

        Raises:
            MaskError: a turn is not certain, or a text holds a control token that cannot be told from a real one.
        """
        for slot in self._slots:
            if match := self._control.pattern.search(read_slot(self._messages, slot)):
                raise MaskError(
                    "special_token_in_content",
                    f"message {slot.message + 1} holds {match[0]!r}, a control token, and the template "
                    "rewrites messages: change that text",
                )
        blocks = self._template.render_tracked(self._messages, self._tools)[1]
        spans: list[Span] = []
        for i in trained:
            start, closing, end = self._by_prefix(i) or self._by_mark(i)
            stretches = [(start, end)]
            if self._template.has_generation:
                stretches = blocks_of_turn(blocks, start, end, 0)
            for number, (a, b) in enumerate(stretches):
                before = [match.start() for match in self._control.pattern.finditer(self._rendered, 0, a)]
                spans.append(Span(a, b, before[-1] if before else -1, closing if b == end else -1, number == 0))
        if opened:
            spans += [Span(*self._place(slot)[:2]) for slot in self._slots if slot.message in opened]
            spans.sort(key=lambda span: span.start)
        return Layout(self._rendered, checked(spans), [], False)

    def _prompt(self, i: int, ask: bool) -> str | None:
        try:
            return self._template.render(self._messages[:i], self._tools, ask)
        except MaskError:
            return None  # a template may refuse the part of a conversation

    def _by_prefix(self, i: int) -> tuple[int, int, int] | None:
        """Turn ``i`` as the text that it adds to its own prompt: (start, closing, end), or None."""
        prompt, whole = self._prompt(i, True), self._prompt(i + 1, False)
        if prompt is None or whole is None or prompt == self._prompt(i, False):
            return None
        if not (whole.startswith(prompt) and self._rendered.startswith(prompt)) or self._control.closing is None:
            return None
        at = whole.rfind(self._control.closing, len(prompt))
        end = at + len(self._control.closing)
        return (len(prompt), at, end) if at >= 0 and self._rendered.startswith(whole[:end]) else None

    def _by_mark(self, i: int) -> tuple[int, int, int]:
        """Turn ``i`` as the place of its content: (start, closing or -1, end).

        Raises:
            MaskError: ``content_changed``.
        """
        slot = next((slot for slot in self._slots if slot.path == (i, "content")), None)
        if slot is None:
            raise MaskError(
                "content_not_found", f"message {i + 1}: the template rewrites it and it has no plain content"
            )
        start, end, after = self._place(slot)
        prompt, without = self._prompt(i, True), self._prompt(i, False)
        if prompt is not None and without is not None and prompt != without and prompt.startswith(without):
            header = prompt[len(without) :]
            at = self._rendered.rfind(header, 0, start)
            if at >= 0 and not self._control.pattern.search(self._rendered[at + len(header) : start]):
                start = at + len(header)
        alone = self._template.render(
            with_slots(self._messages[: i + 1], {slot.path: _MARK}), self._tools, False
        ).split(_MARK)[-1]
        place = self._control.first(alone)
        if place is not None and after.startswith(alone[: place[1]]):
            return start, end + place[0], end + place[1]
        return start, -1, end

    def _place(self, slot: Slot) -> tuple[int, int, str]:
        """Where a slot's text stands: (start, end, text after it), from a rendering where only it is a mark.

        Raises:
            MaskError: ``content_changed``: all the rest does not stay as it is.
        """
        text = read_slot(self._messages, slot)
        marked = with_slots(self._messages, {slot.path: _MARK})
        halves = self._template.render(marked, self._tools, False).split(_MARK)
        rendered = self._rendered
        if len(halves) == 2 and rendered.startswith(halves[0]) and rendered.endswith(halves[1]):
            start, end = len(halves[0]), len(rendered) - len(halves[1])
            if start <= end and rendered[start:end].strip() in text:
                return start, end, halves[1]
        raise MaskError(
            "content_changed",
            f"message {slot.message + 1}: the chat template rewrites this text, so its place is not certain: put "
            "reasoning into reasoning_content, or use another chat template",
        )
