"""Turn a row of any known format into a Conversation.

=================  ==========================================  =============================================
format             columns                                     becomes
=================  ==========================================  =============================================
messages           messages (tools, unmask, system)            the messages as they stand
sharegpt           conversations: from, value                  messages, roles mapped
prompt-completion  prompt, completion: text or messages        completion supervised, prompt not
alpaca             instruction, output (input, history)        user and assistant turns
text               text                                        a plain document, every token supervised
=================  ==========================================  =============================================

In every format ``source`` (or ``dataset``) names a row's origin and ``phase`` its phase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sengi.conversation import Conversation
from sengi.data.bounded import LIMITS, Limits
from sengi.data.files import read_rows
from sengi.data.messages import Messages, as_flag, as_list, as_text, as_tools, check_messages, parse_json
from sengi.data.plain_lines import PlainLines, phase_of, source_of
from sengi.data.rows import Problem, RowError, StrictDecoder, printable, show

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}


def detect_format(row: dict[str, Any]) -> str:
    """Return the name of the row's format, by its columns; null columns count as absent.

    Raises:
        Problem: ``"unknown_format"``.
    """
    for name, (columns, _) in FORMATS.items():
        if all(row.get(column) is not None for column in columns):
            return name
    found = ", ".join(show(key) for key in list(row)[:8] if row[key] is not None) or "none"
    known = "; ".join(" + ".join(columns) for columns, _ in FORMATS.values())
    raise Problem("unknown_format", f"no known format: the columns are {found}; rename them to one of: {known}")


def to_conversation(row: dict[str, Any], *, file: str, row_number: int) -> Conversation:
    """Turn one row into a conversation.

    Args:
        row: the columns, as ``read_rows`` yields them.
        file: the file's name, for messages and ledgers.
        row_number: number of the row in it, from 1.

    Raises:
        RowError: the row is of no known format, or something in it cannot be used.
    """
    try:
        return _convert(row, file, row_number)
    except Problem as problem:
        raise RowError(problem.reason, f"{printable(file, 300)}:{row_number}: {problem}", row_number) from None


def read_conversations(
    path: str | Path, *, limits: Limits = LIMITS, on_bytes: Callable[[int], None] | None = None, skip: int = 0
) -> Iterator[Conversation | RowError]:
    """Yield each row of a data file as a conversation, or as the error that says why it cannot be one.

    Args:
        path: the file.
        limits: see ``read_rows``.
        on_bytes: see ``read_rows``.
        skip: see ``read_rows``.

    Raises:
        DataError: the file itself cannot be read to its end.
    """
    file = str(path)
    for number, row in read_rows(path, limits=limits, on_bytes=on_bytes, quick=PlainLines(file), skip=skip):
        if isinstance(row, (Conversation, RowError)):
            yield row
            continue
        try:
            yield to_conversation(row, file=file, row_number=number)
        except RowError as error:
            yield error


def _convert(row: dict[str, Any], file: str, number: int) -> Conversation:
    name = detect_format(row)
    source, phase = source_of(row, file), phase_of(row)
    if name == "text":
        text = as_text(row["text"], "column 'text'")
        if not text.strip():
            raise Problem("empty_text", "column 'text' is empty; delete the row")
        return Conversation((), "text", text, source=source, phase=phase, file=file, row=number)
    messages, everything = FORMATS[name][1](row)
    system = row.get("system")
    if system and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": as_text(system, "column 'system'")})
    if not messages:
        raise Problem("empty_messages", "the conversation holds no message; delete the row")
    unmask = as_flag(row.get("unmask"), "unmask") or everything
    if not unmask and not any(message["role"] == "assistant" for message in messages):
        cure = "delete the row, add the answer, or set unmask: true to train on the other roles"
        raise Problem("no_assistant_turn", f"no assistant message, so nothing to learn; {cure}")
    tools = row.get("tools")
    return Conversation(
        tuple(messages),
        tools=as_tools(tools) if tools else None,
        unmask=unmask,
        source=source,
        phase=phase,
        file=file,
        row=number,
    )


# ---- one function a format: row -> (messages, whether all of them are supervised)


def _from_messages(row: dict[str, Any]) -> tuple[Messages, bool]:
    return check_messages(row["messages"], "messages")


def _from_prompt_completion(row: dict[str, Any]) -> tuple[Messages, bool]:
    prompt, _ = _side(row["prompt"], "prompt", "user")
    completion, _ = _side(row["completion"], "completion", "assistant")
    if not any(message["role"] == "assistant" for message in completion):
        raise Problem("no_assistant_turn", "column 'completion' holds no assistant message; add the answer")
    unless_said = {"train": False}  # the completion alone counts, whoever speaks in the prompt
    prompt = [unless_said | message if message["role"] == "assistant" else message for message in prompt]
    return prompt + completion, False


def _side(value: Any, column: str, role: str) -> tuple[Messages, bool]:
    if isinstance(value, str) and not (value.startswith("[{") and _is_message_list(value)):
        return [{"role": role, "content": value}], False
    return check_messages(value, column)


def _is_message_list(text: str) -> bool:
    # A prompt may itself be JSON; only a list of objects with roles is taken for messages.
    try:
        value = StrictDecoder().value(text)
    except Problem:
        return False
    return all(isinstance(item, dict) and "role" in item and "content" in item for item in value)


def _from_alpaca(row: dict[str, Any]) -> tuple[Messages, bool]:
    messages: Messages = []
    for pair in as_list(row.get("history") or [], "history"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Problem("bad_history", "column 'history' is not a list of [question, answer] pairs; mend it")
        messages.append({"role": "user", "content": as_text(pair[0], "column 'history'")})
        messages.append({"role": "assistant", "content": as_text(pair[1], "column 'history'")})
    question = as_text(row["instruction"], "column 'instruction'")
    if row.get("input"):
        question += "\n\n" + as_text(row["input"], "column 'input'")
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": as_text(row["output"], "column 'output'")})
    return messages, False


def _from_sharegpt(row: dict[str, Any]) -> tuple[Messages, bool]:
    turns = as_list(row["conversations"], "conversations")
    if all(isinstance(turn, dict) and "role" in turn and "from" not in turn for turn in turns):
        return check_messages(turns, "conversations")
    messages = []
    for index, turn in enumerate(turns, 1):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise Problem("bad_message", f"{where} is {show(turn)}, not an object with from and value")
        speaker = turn.get("from")
        role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            cure = "use human, gpt, system, tool, function_call or observation"
            raise Problem("bad_role", f"{where}: unknown speaker {show(speaker)}; {cure}")
        message = {key: value for key, value in turn.items() if key not in ("from", "value")}
        message.update(role=role, content=turn.get("value"))
        if speaker == "function_call":
            message.update(content="", tool_calls=_function_calls(turn.get("value"), where))
        messages.append(message)
    return check_messages(messages, "conversations")


def _function_calls(value: Any, where: str) -> Messages:
    calls = parse_json(value, where, "bad_tool_call")
    calls = calls if isinstance(calls, list) else [calls]
    return [{"type": "function", "function": call} for call in calls]


FORMATS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], tuple[Messages, bool]]]] = {
    "messages": (("messages",), _from_messages),
    "sharegpt": (("conversations",), _from_sharegpt),
    "prompt-completion": (("prompt", "completion"), _from_prompt_completion),
    "alpaca": (("instruction", "output"), _from_alpaca),
    "text": (("text",), lambda row: ([], True)),
}
