"""Where the template puts each message: a rendering with sentinels, made once per shape of conversation.

Two conversations have the same *shape* when they differ only in the text of their messages. For a shape, every
text (a *slot*) is replaced by a sentinel and the template is rendered; what stands between the sentinels is the
template's own text. From it follow, once per shape: where the generation prompt of each assistant turn ends, which
token closes the turn, and which ``{% generation %}`` blocks belong to it. A real rendering then only has to
equal the template's text with the slots filled in, whole or trimmed, and every position in it is proven.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sengi.errors import MaskError
from sengi.masks.slots import SENTINEL, Slot, sentinels, slot_paths
from sengi.masks.template import ChatTemplate, Message


@dataclass(frozen=True, slots=True)
class Control:
    """Which texts the tokenizer turns into control tokens.

    Attributes:
        pattern: matches any of them, longest first.
        closing: the text that ends a plain assistant turn; None while it is not known, or where none does.
    """

    pattern: re.Pattern[str]
    closing: str | None = None

    def first(self, text: str) -> tuple[int, int] | None:
        """Span of the turn's closing token in ``text``, the template's text after the turn's last slot."""
        if self.closing is not None and (at := text.find(self.closing)) >= 0:
            return at, at + len(self.closing)
        match = self.pattern.search(text)
        return match.span() if match else None


@dataclass(frozen=True, slots=True)
class Mark:
    """A position in the template's text: part ``part``, ``offset`` characters in."""

    part: int
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A supervised stretch of an assistant turn.

    Attributes:
        start: first character that the model writes.
        end: behind the last one (the closing token where there is one).
        anchor: begin of the last control token before ``start``, or None: the text's begin.
        closing: begin of the closing token, or None where the stretch ends with ordinary text.
        border: the prompt of the model ends at ``start``.
    """

    start: Mark
    end: Mark
    anchor: Mark | None
    closing: Mark | None
    border: bool


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A shape's rendering: ``parts[0] slot parts[1] slot ... parts[-1]``.

    Attributes:
        parts: the template's own text.
        slots: the messages' texts between the parts, in order of appearance.
        pieces: supervised stretches by message number; a list without entries: nothing of that turn is.
        failed: reasons of assistant turns that could not be placed, by message number.
        controls: number of control tokens in the parts.
        unsaid: number of messages whose reasoning the template leaves out.
    """

    parts: tuple[str, ...]
    slots: tuple[Slot, ...]
    pieces: dict[int, list[Piece]]
    failed: dict[int, MaskError]
    controls: int
    unsaid: int


def build(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, control: Control
) -> Skeleton:
    """Render the shape of a conversation and find its supervised stretches.

    Args:
        template: the model's chat template.
        messages: prepared messages; their texts are not looked at.
        tools: tool schemas or None.
        control: the tokenizer's control tokens.

    Returns:
        The skeleton; turns without a certain place are in ``failed``.

    Raises:
        MaskError: the template refuses the conversation.
    """
    slots = slot_paths(messages)
    marked = sentinels(messages, slots)
    text, blocks = template.render_tracked(marked, tools)
    pieces_of_text = SENTINEL.split(text)
    parts, found = tuple(pieces_of_text[::2]), tuple(slots[int(k)] for k in pieces_of_text[1::2])
    places = [(m.start(), m.end(), slots[int(m[1])].message) for m in SENTINEL.finditer(text)]
    view = _View(text, slots, places, control)
    pieces: dict[int, list[Piece]] = {}
    failed: dict[int, MaskError] = {}
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        lost = [slot for slot in slots if slot.message == i and slot not in found and not slot.may_vanish]
        try:
            if lost:
                where = "tool_calls" if "tool_calls" in lost[0].path else "content"
                raise MaskError("content_not_found", f"message {i + 1}: the chat template leaves out its {where}")
            own = [slot for slot in found if slot.message == i]
            if len(own) != len(set(own)):
                raise MaskError("content_changed", f"message {i + 1}: the chat template writes one of its texts twice")
            pieces[i] = _place_turn(template, marked, tools, i, view, blocks)
        except MaskError as error:
            failed[i] = error
    spoken = {slot.message for slot in found if slot.may_vanish}
    controls = sum(len(control.pattern.findall(part)) for part in parts)
    unsaid = sum("reasoning_content" in slot.path and slot.message not in spoken for slot in slots)
    return Skeleton(parts, found, pieces, failed, controls, unsaid)


@dataclass(frozen=True, slots=True)
class _View:
    """The sentinel rendering, the slots by sentinel number, and (start, end, message) of every sentinel in it."""

    text: str
    slots: list[Slot]
    places: list[tuple[int, int, int]]
    control: Control

    def mark(self, at: int) -> Mark:
        """Position in the parts of character ``at`` (never inside a sentinel)."""
        part = sum(1 for _, end, _ in self.places if end <= at)
        return Mark(part, at - (self.places[part - 1][1] if part else 0))


def _place_turn(
    template: ChatTemplate,
    marked: list[Message],
    tools: Sequence[dict[str, Any]] | None,
    i: int,
    view: _View,
    blocks: list[tuple[int, int]],
) -> list[Piece]:
    own = [(start, end) for start, end, message in view.places if message == i]
    start = _turn_start(template, marked, tools, i, view, own[0][0] if own else None)
    closing, end = _turn_end(template, marked, tools, i, view, own[-1][1] if own else start)
    spans = [(start, end)]
    if template.has_generation:
        spans = blocks_of_turn(blocks, start, end, own[-1][1] if own else start)
    pieces = []
    for number, (a, b) in enumerate(spans):
        before = [match.start() for match in view.control.pattern.finditer(view.text, 0, a)]
        closes = closing is not None and b == end
        pieces.append(
            Piece(
                start=view.mark(a),
                end=view.mark(b),
                anchor=view.mark(before[-1]) if before else None,
                closing=view.mark(closing) if closes and closing is not None else None,
                border=number == 0,
            )
        )
    return pieces


def blocks_of_turn(blocks: list[tuple[int, int]], start: int, end: int, spoken: int) -> list[tuple[int, int]]:
    """The turn's ``{% generation %}`` blocks; the last one is led to the closing token, neither short of it nor on."""
    spans = [(max(a, start), min(b, end)) for a, b in blocks if a < end and b > start]
    spans = [(a, b) for a, b in spans if a < b]
    if spans and spans[-1][1] >= spoken:
        spans[-1] = (spans[-1][0], end)
    return spans


def _turn_start(
    template: ChatTemplate,
    marked: list[Message],
    tools: Sequence[dict[str, Any]] | None,
    i: int,
    view: _View,
    content: int | None,
) -> int:
    """Where the model begins to write turn ``i``: behind the prompt that it gets at inference."""
    try:
        prompt = template.render(marked[:i], tools, True)
        honoured = prompt != template.render(marked[:i], tools, False)
    except MaskError as error:
        # Some templates refuse to be asked here (no user message yet). The content itself is still certain.
        if content is None:
            raise MaskError("content_not_found", f"message {i + 1}: no text and no prompt before it") from error
        return content
    if view.text.startswith(prompt):
        gap = "" if content is None else view.text[len(prompt) : content]
        if honoured or (content is not None and not gap.strip()):
            return len(prompt)
    if content is None:
        raise MaskError("content_not_found", f"message {i + 1} has no text and its header is not certain")
    if honoured:
        header = SENTINEL.split(prompt)[-1]
        previous = max((end for _, end, _ in view.places if end <= content), default=0)
        if view.text.startswith(header, previous) and previous + len(header) <= content:
            return previous + len(header)
    return content


def _turn_end(
    template: ChatTemplate,
    marked: list[Message],
    tools: Sequence[dict[str, Any]] | None,
    i: int,
    view: _View,
    spoken: int,
) -> tuple[int | None, int]:
    """Begin of the closing token of turn ``i`` (None: ordinary text) and the end of what is supervised.

    What follows the turn when it is the last message tells its closing token from the next turn's header. Both
    renderings must agree up to it.
    """
    following = next((start for start, _, _ in view.places if start >= spoken), len(view.text))
    after = view.text[spoken:following]
    alone = template.render(marked[: i + 1], tools, False)
    own = [match.end() for match in SENTINEL.finditer(alone) if view.slots[int(match[1])].message == i]
    if own:
        alone_after = alone[own[-1] :]
    elif alone.startswith(view.text[:spoken]):
        alone_after = alone[spoken:]
    else:
        raise MaskError("closing_not_found", f"message {i + 1} has no text and its end is not certain")
    place = view.control.first(alone_after)
    if place is not None and after.startswith(alone_after[: place[1]]):
        return spoken + place[0], spoken + place[1]
    written = alone_after.rstrip()
    if place is None and written and after.startswith(written):
        return None, spoken + len(written)
    if marked[i].get("tool_calls"):
        raise MaskError("closing_not_found", f"message {i + 1}: the end of its tool calls is not certain")
    return None, spoken
