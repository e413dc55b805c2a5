"""The texts inside messages (slots): finding them, putting sentinels in their place, matching them in a rendering."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sengi.masks.template import Message

Path = tuple[Any, ...]
_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: no template looks for them, none trims them
SENTINEL = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_TEXT_KEYS = ("content", "reasoning_content", "thinking", "reasoning")
_TRIMS = (str, str.strip, str.lstrip, str.rstrip, lambda text: text.strip("\n"), lambda text: text.lstrip("\n"))


@dataclass(frozen=True, slots=True)
class Slot:
    """A text of a message: ``path`` leads from the message list to it, ``message`` is the message's number."""

    path: Path
    message: int

    @property
    def may_vanish(self) -> bool:
        """Templates may leave out reasoning, but not what the assistant said or called."""
        return self.path[1] in _TEXT_KEYS[1:]


def slot_paths(messages: Sequence[Message]) -> list[Slot]:
    """All texts of the messages that a template prints as they are: contents, reasoning, names of called tools."""
    paths: list[Path] = []
    for number, message in enumerate(messages):
        paths += ((number, key) for key in _TEXT_KEYS)
        if isinstance(parts := message.get("content"), list | tuple):
            paths += ((number, "content", k, "text") for k in range(len(parts)))
        if isinstance(calls := message.get("tool_calls"), list | tuple):
            paths += ((number, "tool_calls", k, "function", "name") for k in range(len(calls)))
            paths += ((number, "tool_calls", k, "name") for k in range(len(calls)))
    return [Slot(path, path[0]) for path in paths if _is_text(messages, path)]


def _is_text(messages: Sequence[Message], path: Path) -> bool:
    value: Any = messages
    for step in path:
        if isinstance(step, str) and not (isinstance(value, dict) and step in value):
            return False
        value = value[step]
    return type(value) is str and value != ""


def read_slot(messages: Sequence[Message], slot: Slot) -> str:
    """The text of a slot."""
    value: Any = messages
    for step in slot.path:
        value = value[step]
    return value


def with_slots(messages: Sequence[Message], texts: dict[Path, str]) -> list[Message]:
    """Copy of the messages with the slots at the given paths replaced."""
    filled = [dict(message) for message in messages]
    for path, text in texts.items():
        if len(path) > 2:  # inside lists and dicts that must not change for others
            filled[path[0]][path[1]] = copy.deepcopy(filled[path[0]][path[1]])
        value: Any = filled
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = text
    return filled


def sentinels(messages: Sequence[Message], slots: Sequence[Slot]) -> list[Message]:
    """The messages with sentinel k in place of slot k; names of one reasoning text share a sentinel."""
    seen: dict[tuple[int, str], str] = {}
    texts: dict[Path, str] = {}
    for k, slot in enumerate(slots):
        mark = f"{_OPEN}{k}{_CLOSE}"
        if slot.may_vanish:
            mark = seen.setdefault((slot.message, read_slot(messages, slot)), mark)
        texts[slot.path] = mark
    return with_slots(messages, texts)


def fill(parts: Sequence[str], texts: Sequence[str], rendered: str) -> list[int] | None:
    """Match a real rendering against the template's own text.

    Args:
        parts: the template's own text around the slots.
        texts: the text of each slot.
        rendered: what the template gives for the conversation.

    Returns:
        Start of every part in ``rendered``, or None when the rendering is not the parts with the texts in between,
        whole or trimmed (the template looks into the texts).
    """
    for trim in (str, str.strip):
        starts, joined = [0], [parts[0]]
        at = len(parts[0])
        for part, text in zip(parts[1:], texts, strict=True):
            value = trim(text)
            at += len(value)
            starts.append(at)
            at += len(part)
            joined += (value, part)
        if at == len(rendered) and "".join(joined) == rendered:
            return starts
    return _fill_each(parts, texts, rendered)


def _fill_each(parts: Sequence[str], texts: Sequence[str], rendered: str) -> list[int] | None:
    """As `fill`, each text trimmed in its own way (Mistral trims answers but not questions)."""
    if not rendered.startswith(parts[0]):
        return None
    starts, at = [0], len(parts[0])
    for k, text in enumerate(texts):
        for trim in _TRIMS:
            value = trim(text)
            if rendered.startswith(value, at) and rendered.startswith(parts[k + 1], at + len(value)):
                break
        else:
            return None
        at += len(value)
        starts.append(at)
        at += len(parts[k + 1])
    return starts if at == len(rendered) else None
