"""What can be wrong with one row, and a JSON decoder that says so instead of guessing."""

from __future__ import annotations

import json
import re
from typing import Any

from sengi.errors import DataError

MAX_DEPTH = 100  # of nested lists and objects; chat templates and hashing recurse in Python
# Reasons of rows that are well formed and hold nothing to learn: left out and counted, not a broken file.
NOTHING_TO_LEARN = frozenset({"no_assistant_turn", "empty_messages", "empty_text"})
_BLANK = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class RowError(DataError):
    """One row cannot be used; the rest of its file can.

    Args:
        reason: a short fixed name, used to count (for example ``"not_json"``).
        message: the sentence for people; starts with ``file:row``.
        row: number of the row, from 1.
    """

    def __init__(self, reason: str, message: str, row: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.row = row

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str, int]]:
        return type(self), (self.reason, str(self), self.row)  # worker processes send it home


class Problem(ValueError):
    """A RowError before its place is known: ``reason`` and the part of the sentence after ``file:row``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def printable(text: str, limit: int = 60) -> str:
    """Return ``text`` short and safe for a terminal: control and direction characters escaped.

    Args:
        text: words from a data file or its name.
        limit: longest result, in characters.
    """
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def show(value: Any) -> str:
    """Return a value of a row as it may stand in an error message."""
    if isinstance(value, str):
        return f"'{printable(value)}'"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return "null" if value is None else printable(str(value))


class StrictDecoder:
    """A JSON decoder that refuses what other readers would read differently.

    Refused: repeated keys (readers disagree on which wins), NaN and Infinity (not JSON), lone surrogates (no
    tokenizer can encode them), integers of thousands of digits and nesting deeper than ``MAX_DEPTH``.
    """

    def __init__(self) -> None:
        self._found: Problem | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Hooks note the first problem and go on, so that the end of the value is known all the same.
        result = dict(pairs)
        if len(result) != len(pairs) and self._found is None:
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self._found = Problem("duplicate_key", f"key {show(twice)} appears twice in one object; remove one")
        return result

    def _constant(self, name: str) -> None:
        self._found = Problem("bad_number", f"{name} is not JSON; write null or a number")

    def value_at(self, text: str, start: int) -> tuple[Any, int]:
        """Decode the value that starts at ``start``.

        Returns:
            The value (or the ``Problem`` found in it, the value being well formed), and where it ends.

        Raises:
            Problem: the text is not JSON, or is too deep or too big to read on.
        """
        self._found = None
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            what, where = error.msg.removesuffix(" at"), error.pos + 1 - start
            raise Problem("not_json", f"not valid JSON ({what} at character {where})") from None
        except RecursionError:
            raise Problem("too_deep", f"nested deeper than {MAX_DEPTH} levels; flatten the row") from None
        except ValueError:  # int() refuses more than 4,300 digits: quadratic time
            raise Problem("bad_number", "an integer has thousands of digits; write it as a string") from None
        problem = self._found
        if (
            problem is None
            and text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH
            and isinstance(value, (dict, list))
        ):
            problem = _too_deep(value)
        if problem is None and (text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0):
            problem = _surrogates(value)
        return (value if problem is None else problem), end

    def value(self, text: str) -> Any:
        """Decode ``text``, which must hold one value and nothing else.

        Raises:
            Problem: with the reason.
        """
        value, end = self.value_at(text, skip_blank(text, 0))
        if skip_blank(text, end) != len(text):
            raise Problem("not_json", f"not valid JSON (more text after the value, at character {end + 1})")
        if isinstance(value, Problem):
            raise value
        return value


def skip_blank(text: str, start: int) -> int:
    """Return the first position from ``start`` that is not JSON white space."""
    match = _BLANK.match(text, start)
    return match.end() if match else start


def _too_deep(value: Any) -> Problem | None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children = (parent.values() if isinstance(parent, dict) else parent for parent in level)
        level = [child for group in children for child in group if isinstance(child, (dict, list))]
        if not level:
            return None
    return Problem("too_deep", f"nested deeper than {MAX_DEPTH} levels; flatten the row")


def _surrogates(value: Any) -> Problem | None:
    if _SURROGATE.search(json.dumps(value, ensure_ascii=False)) is None:
        return None
    return Problem("bad_unicode", r"half of a surrogate pair (\ud800-\udfff) stands alone; repair the text")
