"""A conversation's rendered text with the character positions of what is supervised, each of them proven.

First the skeleton of the conversation's shape (`mask_skeleton`). Where a template looks into the texts (it
cuts old reasoning out of them, or wraps a tool's answer in its own way) the rendering differs from the skeleton;
then each turn is found by itself: by the difference of the renderings up to and including it, or by a
rendering in which only its own text is a sentinel. What neither proves is refused.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sengi.data.conversation import Conversation
from sengi.data.mask_skeleton import Control, Skeleton, blocks_of_turn, build
from sengi.data.mask_slots import Slot, fill, read_slot, sentinels, slot_paths, with_slots
from sengi.data.template import ChatTemplate, Message, prepare
from sengi.errors import MaskError

_MAX_SHAPES = 4096
_MARK = "\ue000mark\ue001"


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


class LayoutMaker:
    """Makes layouts under one template; keeps the skeletons of the shapes seen so far.

    Args:
        template: the model's chat template.
        control: the tokenizer's control tokens.
    """

    def __init__(self, template: ChatTemplate, control: Control) -> None:
        self._template = template
        self._control = control
        self._skeletons: dict[Any, Skeleton] = {}

    def layout(self, conversation: Conversation) -> Layout:
        """Render a conversation and place its spans.

        Raises:
            MaskError: the template refuses it, or a turn that should be supervised is not certain.
        """
        trained = [
            i
            for i, m in enumerate(conversation.messages)
            if m.get("role") == "assistant" and m.get("train") is not False
        ]
        if not trained and not conversation.unmask:
            if any(message.get("role") == "assistant" for message in conversation.messages):
                raise MaskError("no_supervised_token", 'every assistant message says "train": false')
            raise MaskError("no_assistant_turn", "no message of the assistant: nothing to learn from")
        messages = prepare(conversation.messages)
        tools = conversation.tools
        rendered = self._template.render(messages, tools, False)
        skeleton = self._skeleton(messages, tools)
        texts = [read_slot(messages, slot) for slot in skeleton.slots]
        starts = fill(skeleton.parts, texts, rendered)
        if starts is None or not self._prompts_agree(messages, tools, skeleton, starts, rendered):
            return _Differences(self._template, self._control, messages, tools, rendered).layout(
                trained, conversation.unmask
            )
        return self._filled(messages, skeleton, starts, rendered, trained, conversation.unmask)

    def _skeleton(self, messages: list[Message], tools: Sequence[dict[str, Any]] | None) -> Skeleton:
        key: Any = _shape_of(messages) if tools is None else None
        constants = ""
        if key is None:
            marked = sentinels(messages, slot_paths(messages))
            key = constants = json.dumps([marked, tools], ensure_ascii=False, sort_keys=False, default=str)
        skeleton = self._skeletons.get(key)
        if skeleton is None:
            if self._control.pattern.search(constants or " ".join(key)):
                raise MaskError(
                    "special_token_in_content",
                    "a role, tool or tool call holds the text of a control token of this tokenizer: change that text",
                )
            if len(self._skeletons) >= _MAX_SHAPES:
                self._skeletons.clear()
            skeleton = self._skeletons[key] = build(self._template, messages, tools, self._control)
        return skeleton

    def _prompts_agree(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]] | None,
        skeleton: Skeleton,
        starts: list[int],
        rendered: str,
    ) -> bool:
        """Under a template whose generation prompt depends on texts: the real prompts end where the skeleton says."""
        if not self._template.prompt_reads_messages:
            return True
        for i, pieces in skeleton.pieces.items():
            prompt = self._template.render(messages[:i], tools, True) if i else ""
            if pieces and prompt and rendered.startswith(prompt):
                start = pieces[0].start
                if not self._template.has_generation and starts[start.part] + start.offset != len(prompt):
                    return False
        return True

    def _filled(
        self,
        messages: list[Message],
        skeleton: Skeleton,
        starts: list[int],
        rendered: str,
        trained: list[int],
        unmask: bool,
    ) -> Layout:
        spans: list[Span] = []
        for i in trained:
            if i in skeleton.failed:
                raise skeleton.failed[i]
            for piece in skeleton.pieces[i]:
                anchor, closing = piece.anchor, piece.closing
                spans.append(
                    Span(
                        starts[piece.start.part] + piece.start.offset,
                        starts[piece.end.part] + piece.end.offset,
                        -1 if anchor is None else starts[anchor.part] + anchor.offset,
                        -1 if closing is None else starts[closing.part] + closing.offset,
                        piece.border,
                    )
                )
        contents = [(starts[k] + len(skeleton.parts[k]), starts[k + 1]) for k in range(len(skeleton.slots))]
        if unmask:
            spans += [
                Span(a, b)
                for (a, b), slot in zip(contents, skeleton.slots, strict=True)
                if messages[slot.message].get("role") not in ("system", "assistant") and a < b
            ]
            spans.sort(key=lambda span: span.start)
        unsafe = len(self._control.pattern.findall(rendered)) != skeleton.controls
        return Layout(rendered, _checked(spans), contents, unsafe, skeleton.unsaid)


class _Differences:
    """Finds each turn of one conversation by comparing renderings, for templates that look into the texts."""

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

    def layout(self, trained: list[int], unmask: bool) -> Layout:
        """Layout by differences.

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
        if unmask:
            spans += [
                Span(*self._place(slot)[:2])
                for slot in self._slots
                if self._messages[slot.message].get("role") not in ("system", "assistant")
            ]
            spans.sort(key=lambda span: span.start)
        return Layout(self._rendered, _checked(spans), [], False)

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


def _shape_of(messages: list[Message]) -> tuple[str, ...] | None:
    """The roles, when every message is a role and a text and nothing else; None for any other"""
    for message in messages:
        if len(message) != 2 or type(message.get("content")) is not str or not message["content"]:
            return None
        if type(message.get("role")) is not str:
            return None
    return tuple(message["role"] for message in messages)


def _checked(spans: list[Span]) -> list[Span]:
    spans = [span for span in spans if span.start < span.end]
    if not spans:
        raise MaskError("no_supervised_token", "the template leaves nothing of the assistant's turns to train on")
    if any(a.end > b.start for a, b in itertools.pairwise(spans)):
        raise MaskError("content_changed", "two supervised turns overlap in the rendered text")
    return spans
