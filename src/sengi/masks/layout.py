"""A conversation's rendered text with the character positions of what is supervised, each of them proven.

First the skeleton of the conversation's shape (`masks.skeleton`) is filled with its texts. Where the rendering
differs from that, the template looks into the texts and each turn is found by itself (`masks.differences`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sengi.conversation import Conversation
from sengi.errors import MaskError
from sengi.masks.differences import Differences
from sengi.masks.skeleton import Control, Skeleton, build
from sengi.masks.slots import SENTINEL, fill, read_slot, sentinels, slot_paths
from sengi.masks.span import Layout, Span, checked
from sengi.masks.template import ChatTemplate, Message, prepare

NEVER_OPENED = ("system", "developer", "assistant")  # unmask supervises the text of other roles

_MAX_SHAPES = 4096


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
        opened = {
            i
            for i, m in enumerate(conversation.messages)
            if conversation.unmask and m.get("role") not in NEVER_OPENED and m.get("train") is not False
        }
        messages = prepare(conversation.messages)
        tools = conversation.tools
        rendered = self._template.render(messages, tools, False)
        skeleton = self.skeleton(messages, tools)
        texts = [read_slot(messages, slot) for slot in skeleton.slots]
        starts = fill(skeleton.parts, texts, rendered)
        if starts is None or not self._prompts_agree(messages, tools, skeleton, starts, rendered):
            return Differences(self._template, self._control, messages, tools, rendered).layout(trained, opened)
        return self._filled(messages, skeleton, starts, rendered, trained, opened)

    def skeleton(self, messages: list[Message], tools: Sequence[dict[str, Any]] | None) -> Skeleton:
        """The skeleton of a conversation's shape.

        Raises:
            MaskError: the template refuses the shape, or a role or tool holds a control token.
        """
        key: Any = _shape_of(messages) if tools is None else None
        constants = ""
        if key is None:
            marked = sentinels(messages, slot_paths(messages))
            key = constants = json.dumps([marked, tools], ensure_ascii=False, sort_keys=False, default=str)
            if len(SENTINEL.findall(constants)) != len(slot_paths(messages)):
                raise MaskError(
                    "special_token_in_content", "a tool or tool call holds private-use characters that mark texts here"
                )
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
        opened: set[int],
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
        if opened:
            texts = zip(contents, skeleton.slots, strict=True)
            spans += [Span(a, b) for (a, b), slot in texts if slot.message in opened and a < b]
            spans.sort(key=lambda span: span.start)
        unsafe = len(self._control.pattern.findall(rendered)) != skeleton.controls
        return Layout(rendered, checked(spans), contents, unsafe, skeleton.unsaid)


def _shape_of(messages: list[Message]) -> tuple[str, ...] | None:
    """The roles, when every message is a role and a text and nothing else; None for any other"""
    for message in messages:
        if len(message) != 2 or type(message.get("content")) is not str or not message["content"]:
            return None
        if type(message.get("role")) is not str:
            return None
    return tuple(message["role"] for message in messages)
