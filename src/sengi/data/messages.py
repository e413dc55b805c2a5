"""Check the messages of a row and bring their parts into the one shape that chat templates expect."""

from __future__ import annotations

import re
from typing import Any

from sengi.data.rows import Problem, StrictDecoder, show

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
# Both spellings that InstructLab's generator wrote, and the end-of-text token that closes each.
_PRETRAINING = (
    (re.compile(r"(?:\A|\n)<\|(user|assistant)\|>\n"), "<|endoftext|>"),
    (re.compile(r"(?:\A|\n)<\|start_of_role\|>(user|assistant)<\|end_of_role\|>\n?"), "<|end_of_text|>"),
)
_MESSAGE_KEYS = frozenset({"role", "content"})

Messages = list[dict[str, Any]]


def check_messages(value: Any, column: str) -> tuple[Messages, bool]:
    """Check a list of messages; expand InstructLab's ``pretraining`` ones.

    Args:
        value: a list of messages, or JSON text of one.
        column: its name in messages to people.

    Returns:
        The messages, and whether all but system ones are supervised (a ``pretraining`` message says so).

    Raises:
        Problem: with the number of the message.
    """
    messages: Messages = []
    everything = False
    for index, message in enumerate(as_list(value, column), 1):
        if type(message) is not dict:
            raise Problem("bad_message", f"{column}[{index}] is {show(message)}, not an object with role and content")
        role = message.get("role")
        if role == "pretraining":
            messages += _pretraining(_content(message.get("content"), f"{column}[{index}]"), f"{column}[{index}]")
            everything = True
        elif not isinstance(role, str) or role not in ROLES:
            cure = "use system, developer, user, assistant or tool"
            raise Problem("bad_role", f"{column}[{index}]: unknown role {show(role)}; {cure}")
        elif type(message.get("content")) is str and message.keys() == _MESSAGE_KEYS:
            messages.append(message)
        else:
            messages.append(_full_message(message, f"{column}[{index}]"))
    return messages, everything


def _full_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """Check a message with more than role and plain content; what the template alone knows is passed on."""
    result = {key: value for key, value in message.items() if value is not None and key not in ("train", "weight")}
    calls = result.pop("tool_calls", None)
    if (old := result.pop("function_call", None)) is not None and not calls:
        calls = [{"type": "function", "function": old}]  # OpenAI's form before tool_calls
    if calls:
        result["tool_calls"] = _tool_calls(calls, f"{where}.tool_calls")
    if "reasoning_content" in result:
        result["reasoning_content"] = _content(result["reasoning_content"], f"{where}.reasoning_content")
    if result.get("content") is None and (calls or result.get("reasoning_content")):
        result["content"] = ""
    result["content"] = _content(result.get("content"), where)
    if not _trained(message, where):
        result["train"] = False
    return result


def _trained(message: dict[str, Any], where: str) -> bool:
    """Return whether the message may be supervised: ``train``, or ``weight`` 0 or 1 as in OpenAI's files."""
    weight = message.get("weight")
    if weight is not None and weight not in (0, 1):
        raise Problem("bad_weight", f"{where}: weight is {show(weight)}; only 0 and 1 can be trained, or use train")
    train = message.get("train")
    return (train is None or as_flag(train, f"{where}.train")) and weight != 0


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise Problem("no_content", f"{where}: the message has no content; add it or delete the message")
    if not isinstance(value, list):
        raise Problem("bad_content", f"{where}: content is {show(value)}, not text or a list of text parts")
    texts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else part
        if not (isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str)):
            raise Problem(
                "bad_content_part", f"{where}: content part of type {show(kind)}; only text parts are supported"
            )
        texts.append(part["text"])
    return "".join(texts)


def _pretraining(text: str, where: str) -> Messages:
    for pattern, end_of_text in _PRETRAINING:
        # A marker counts only where the generator puts it: alone at the start of a line. Any other "<" is content.
        marks = list(pattern.finditer(text))
        if not marks or marks[0].start() != 0:
            continue
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        return [
            {"role": mark[1], "content": text[mark.end() : end].removesuffix(end_of_text)}
            for mark, end in zip(marks, ends, strict=True)
        ]
    raise Problem(
        "bad_pretraining",
        f"{where}: a 'pretraining' message must begin with '<|user|>' or '<|assistant|>' on a line of its own; "
        "add it, or put the document in a column 'text'",
    )


def _tool_calls(value: Any, where: str) -> Messages:
    return [_tool_call(call, where) for call in as_list(value, where)]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Problem("bad_tool_call", f"{where}: a call without a function name; give name and arguments")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    # Templates write arguments with tojson: text would come out quoted twice, unlike at inference.
    function = {**function, "arguments": parse_json(arguments or "{}", f"{where}.arguments", "bad_tool_call")}
    return {**call, "function": function} if "function" in call else function


def as_tools(value: Any) -> tuple[dict[str, Any], ...] | None:
    """Return the tool schemas of a row, or None where the list is empty."""
    tools = as_list(value, "tools")
    if not all(isinstance(tool, dict) for tool in tools):
        raise Problem("bad_tools", "column 'tools' is not a list of objects; give JSON schemas of functions")
    return tuple(tools) or None


def as_list(value: Any, column: str) -> list[Any]:
    """Return a list that may have come as JSON text, as CSV and many Parquet files hold it."""
    if isinstance(value, str):
        value = parse_json(value, f"column '{column}'", "bad_column")
    if not isinstance(value, list):
        raise Problem("bad_column", f"column '{column}' is {show(value)}, not a list; mend the row")
    return value


def parse_json(text: Any, where: str, reason: str) -> Any:
    """Return the value that JSON text stands for; anything but text is returned as it is.

    Raises:
        Problem: with ``reason``.
    """
    try:
        return StrictDecoder().value(text) if isinstance(text, str) else text
    except Problem as problem:
        raise Problem(reason, f"{where}: {problem}") from None


def as_text(value: Any, where: str) -> str:
    """Return ``value``, which must be text."""
    if not isinstance(value, str):
        raise Problem("bad_content", f"{where} is {show(value)}, not text; quote it")
    return value


def as_flag(value: Any, name: str) -> bool:
    """Return a truth value that may have come as a word; absent is False."""
    if value is None or value == "":
        return False
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):  # CSV holds words
        return value.lower() == "true"
    raise Problem("bad_flag", f"{name} is {show(value)}; write true or false")
