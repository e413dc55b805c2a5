"""The usual line of a data file, in one look: JSON of messages, each a known role and a text, and words beside them.

Reading, checking and converting a row in general (`rows`, `formats`) takes longer than tokenizing a short one. A line
that is plain and right gives the same conversation here; for any other, None sends it the general way, which says
what is wrong with it.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from sengi.conversation import Conversation
from sengi.data.files import split_suffix
from sengi.data.messages import ROLES

_OTHER_WAY = frozenset({"unmask", "tools", "system"})  # columns that change what a conversation is


def _constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are not JSON


_DECODER = json.JSONDecoder(parse_constant=_constant)


class PlainLines:
    """Conversations of the lines of one file.

    Args:
        file: its name, for messages and ledgers.
    """

    def __init__(self, file: str) -> None:
        self._file = file

    def __call__(self, line: str, number: int) -> Conversation | None:
        """The conversation of a line; None if it is not plain."""
        try:
            row = _DECODER.decode(line)
        except (ValueError, RecursionError):
            return None
        if type(row) is not dict:
            return None
        messages = row.get("messages")
        if type(messages) is not list or not _OTHER_WAY.isdisjoint(row):
            return None
        answered = False
        for message in messages:
            if type(message) is not dict or len(message) != 2:
                return None
            role = message.get("role")
            if type(role) is not str or role not in ROLES or type(message.get("content")) is not str:
                return None
            if role == "assistant":
                answered = True
        if not answered or not _whole(line, row, len(messages)):
            return None
        return Conversation(
            tuple(messages), "chat", "", None, False, source_of(row, self._file), phase_of(row), self._file, number
        )


def _whole(line: str, row: dict[str, Any], messages: int) -> bool:
    """Whether the row holds all that the line says, and only what a tokenizer can read.

    JSON allows a key twice and readers disagree on which wins. A repeated key would lose a string, so the strings of
    the line, counted by their quotation marks, are compared with those kept.
    """
    strings = len(row) + 4 * messages
    for value in row.values():
        kind = type(value)
        if kind is str:
            strings += 1
        elif kind is dict or (kind is list and value is not row["messages"]):
            return False
    marks = line.count('"')
    if "\\" in line:
        # a mark inside a string has a backslash before it; one behind two of them may be either
        if '\\\\"' in line or "\\ud" in line or "\\uD" in line:
            return False
        marks -= line.count('\\"')
    return marks == 2 * strings


def source_of(row: dict[str, Any], file: str) -> str:
    """What a row says of its origin, else the file's name without its ending."""
    for column in ("source", "dataset"):
        value = row.get(column)
        if value is not None and isinstance(value, (str, int)) and value != "":
            return str(value)
    return split_suffix(file)[0]


def phase_of(row: dict[str, Any]) -> str:
    """A row's own phase, else nothing."""
    value = row.get("phase")
    return str(value) if isinstance(value, (str, int)) else ""
