from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sengi.data.formats import detect_format, read_conversations, to_conversation
from sengi.data.rows import Problem, RowError

USER = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def convert(row: dict, file: str = "dir/train.jsonl.xz", number: int = 7):
    return to_conversation(row, file=file, row_number=number)


def messages(row: dict) -> list[dict]:
    return list(convert(row).messages)


# ---- one row of each format


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        ({"messages": [USER, ANSWER]}, "messages", [USER, ANSWER]),
        ({"messages": [USER, ANSWER], "prompt": "other", "completion": "x"}, "messages", [USER, ANSWER]),
        ({"prompt": "2 + 2?", "completion": "4"}, "prompt-completion", [USER, ANSWER]),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt-completion", [USER, ANSWER]),
        ({"prompt": [USER], "completion": "4", "text": "both"}, "prompt-completion", [USER, ANSWER]),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, "alpaca", [USER, ANSWER]),
        ({"instruction": "2 + 2?", "output": "4", "text": "both"}, "alpaca", [USER, ANSWER]),
        (
            {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
            "sharegpt",
            [USER, ANSWER],
        ),
        ({"conversations": [USER, ANSWER]}, "sharegpt", [USER, ANSWER]),
        # A null column is a column of another row of the same Parquet file.
        ({"messages": None, "prompt": "2 + 2?", "completion": "4"}, "prompt-completion", [USER, ANSWER]),
    ],
)
def test_formats(row, name, expected):
    assert detect_format(row) == name
    assert messages(row) == expected
    assert convert(row).kind == "chat"


def test_text_is_a_document():
    conversation = convert({"text": " a < b \n"})
    assert (conversation.kind, conversation.text, conversation.messages) == ("text", " a < b \n", ())


def test_alpaca_input_and_history():
    row = {"instruction": "Add.", "input": "2, 2", "output": "4", "history": [["hi", "hello"]], "system": "Be brief."}
    roles = [(message["role"], message["content"]) for message in messages(row)]
    assert roles == [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "Add.\n\n2, 2"),
        ("assistant", "4"),
    ]


def test_answers_inside_a_prompt_are_not_supervised():
    # Rule: prompt/completion means that the completion alone counts, whoever speaks in the prompt.
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert [message.get("train", True) for message in messages(row)] == [True, False, True, True]


def test_a_prompt_that_is_json_stays_text():
    text = '[{"a": 1}]'
    assert messages({"prompt": text, "completion": "x"})[0]["content"] == text
    as_messages = json.dumps([USER])
    assert messages({"prompt": as_messages, "completion": "4"}) == [USER, ANSWER]


def test_sharegpt_roles_and_tool_calls():
    row = {
        "system": "Use tools.",
        "tools": json.dumps([TOOL]),
        "conversations": [
            {"from": "human", "value": "2 + 2?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "It is 4.", "weight": 0},
        ],
    }
    conversation = convert(row)
    assert [message["role"] for message in conversation.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    assert conversation.messages[2] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert conversation.messages[4]["train"] is False
    assert conversation.tools == (TOOL,)


# ---- messages and their parts


def test_message_parts_become_what_templates_expect():
    full = {
        "role": "assistant",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " < b"}],
        "reasoning_content": "Because.",
        "name": None,
        "train": False,
    }
    assert messages({"messages": [USER, full]})[1] == {
        "role": "assistant",
        "content": "a < b",
        "reasoning_content": "Because.",
        "train": False,
    }


def test_a_function_call_of_openais_older_form_is_a_tool_call():
    old = {"name": "add", "arguments": '{"a": 2}'}
    row = {"messages": [USER, {"role": "assistant", "content": None, "function_call": old}], "tools": [TOOL]}
    answer = to_conversation(row, file="rows.jsonl", row_number=1).messages[1]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    assert answer == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_arguments_of_tool_calls_are_objects():
    # Rule: inference servers hand templates objects; text would be quoted twice by tojson.
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": [TOOL]}
    answer = messages(row)[1]
    assert answer["content"] == ""
    assert answer["tool_calls"][0]["function"]["arguments"] == {"a": 2}


@pytest.mark.parametrize(
    ("extra", "train"), [({}, True), ({"train": True}, True), ({"train": False}, False), ({"weight": 1}, True)]
)
def test_train_and_weight(extra, train):
    answer = messages({"messages": [USER, {**ANSWER, **extra}]})[1]
    assert answer == (ANSWER if train else {**ANSWER, "train": False})


def test_unmask_needs_no_assistant():
    assert convert({"messages": [USER], "unmask": True}).unmask
    assert not convert({"messages": [USER, ANSWER], "unmask": "false"}).unmask


def test_empty_tools_are_no_tools():
    for tools in (None, [], "", "[]"):
        assert convert({"messages": [USER, ANSWER], "tools": tools}).tools is None


# ---- InstructLab's pretraining role


LINES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda text: "\n<|" not in "\n" + text)


@given(LINES, LINES)
def test_pretraining_keeps_all_content(question, answer):
    # Rule: only a marker alone on its line divides; every other "<" is content.
    for user, assistant in (
        ("<|user|>", "<|assistant|>"),
        ("<|start_of_role|>user<|end_of_role|>", "<|start_of_role|>assistant<|end_of_role|>"),
    ):
        row = {"messages": [{"role": "pretraining", "content": f"{user}\n{question}\n{assistant}\n{answer}"}]}
        conversation = convert(row)
        assert conversation.unmask
        assert [(message["role"], message["content"]) for message in conversation.messages] == [
            ("user", question),
            ("assistant", answer),
        ]


def test_pretraining_with_markup_in_the_content():
    text = "<|user|>\nIf a < b then <b>x</b>, what is `<|user|>`?\n<|assistant|>\nA <|assistant|> marker.<|endoftext|>"
    assert [message["content"] for message in messages({"messages": [{"role": "pretraining", "content": text}]})] == [
        "If a < b then <b>x</b>, what is `<|user|>`?",
        "A <|assistant|> marker.",
    ]


# ---- source, phase, place


def test_source_phase_and_place():
    row = {"messages": [USER, ANSWER]}
    assert convert(row).source == "train"
    assert convert({**row, "source": "gsm8k", "dataset": "other"}).source == "gsm8k"
    assert convert({**row, "dataset": "other", "phase": "skills"}).source == "other"
    assert convert({**row, "phase": "skills"}).phase == "skills"
    assert convert({**row, "source": {"a": 1}}).source == "train"
    assert convert(row).place == "dir/train.jsonl.xz:7"


# ---- refused by name


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        ({"question": "x", "answer": "y"}, "unknown_format", "'question', 'answer'; rename them to one of: messages"),
        ({}, "unknown_format", "the columns are none"),
        ({"messages": []}, "empty_messages", "holds no message"),
        ({"messages": "hello"}, "bad_column", "column 'messages': not valid JSON"),
        ({"messages": {"a": 1}}, "bad_column", "column 'messages' is an object, not a list"),
        ({"messages": ["hi"]}, "bad_message", "messages[1] is 'hi'"),
        ({"messages": [USER, {"role": "bot", "content": "4"}]}, "bad_role", "messages[2]: unknown role 'bot'"),
        ({"messages": [{"role": ["user"], "content": "4"}]}, "bad_role", "unknown role a list"),
        ({"messages": [{"content": "4"}]}, "bad_role", "unknown role null"),
        ({"messages": [{"role": "\x1b[31m", "content": "4"}]}, "bad_role", r"'\x1b[31m'"),
        ({"messages": [USER]}, "no_assistant_turn", "set unmask: true"),
        ({"messages": [USER, {"role": "assistant"}]}, "no_content", "messages[2]: the message has no content"),
        ({"messages": [USER, {"role": "assistant", "content": 4}]}, "bad_content", "content is 4, not text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}, ANSWER]},
            "bad_content_part",
            "part of type 'image'; only text",
        ),
        ({"messages": [{"role": "user", "content": [7]}, ANSWER]}, "bad_content_part", "part of type 7"),
        ({"messages": [USER, {**ANSWER, "train": "maybe"}]}, "bad_flag", "write true or false"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "bad_weight", "weight is 0.5"),
        ({"messages": [USER, ANSWER], "unmask": 2}, "bad_flag", "unmask is 2"),
        ({"messages": [USER, ANSWER], "tools": "[1]"}, "bad_tools", "JSON schemas"),
        ({"messages": [USER, ANSWER], "tools": "{"}, "bad_column", "column 'tools'"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"id": 1}]}]}, "bad_tool_call", "without a function name"),
        (
            {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "bad_tool_call",
            "messages[2].tool_calls.arguments: not valid JSON",
        ),
        ({"messages": [{"role": "pretraining", "content": "text"}]}, "bad_pretraining", "must begin with"),
        ({"prompt": "a", "completion": [USER]}, "no_assistant_turn", "'completion' holds no assistant"),
        ({"prompt": 5, "completion": "4"}, "bad_column", "column 'prompt' is 5"),
        ({"instruction": "a", "output": 4}, "bad_content", "column 'output' is 4"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "bad_history", "[question, answer] pairs"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "bad_role", "unknown speaker 'alien'"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "bad_tool_call", "not valid JSON"),
        ({"text": " \n"}, "empty_text", "delete the row"),
        ({"text": ["a"]}, "bad_content", "column 'text' is a list"),
    ],
)
def test_rows_that_cannot_be_used(row, reason, words):
    with pytest.raises(RowError) as caught:
        convert(row)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("dir/train.jsonl.xz:7: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.row == 7


# The columns and keys that the readers look at, so that random rows reach deep into them.
COLUMNS = ["messages", "conversations", "prompt", "completion", "instruction", "output", "input", "history", "text"]
KEYS = ["tools", "system", "unmask", "role", "content", "from", "value", "train", "weight", "tool_calls"]
WORDS = st.sampled_from([*COLUMNS, *KEYS, "reasoning_content", "function", "name", "arguments", "type", "source"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(WORDS, JSON, max_size=4) | st.fixed_dictionaries({"messages": JSON}))
def test_any_row_is_read_or_refused_by_name(row):
    try:
        place = convert(row).place
    except RowError as error:
        place = str(error)[: len("dir/train.jsonl.xz:7")]
    assert place == "dir/train.jsonl.xz:7"


# ---- whole files


def test_read_conversations_yields_errors_in_place(tmp_path):
    path = tmp_path / "mix.jsonl"
    lines = [json.dumps({"messages": [USER, ANSWER]}), "{", json.dumps({"x": 1}), json.dumps({"text": "a"})]
    path.write_text("\n".join(lines) + "\n")
    found = [getattr(item, "reason", None) or item.place for item in read_conversations(path)]
    assert found == [f"{path}:1", "not_json", "unknown_format", f"{path}:4"]


def test_csv_and_parquet_hold_messages_as_json_text(tmp_path):
    row = {"messages": json.dumps([USER, ANSWER]), "tools": json.dumps([TOOL]), "unmask": "TRUE"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    quoted = ['"' + text.replace('"', '""') + '"' for text in row.values()]
    (tmp_path / "a.csv").write_text(",".join(row) + "\n" + ",".join(quoted) + "\n")
    for name in ("a.parquet", "a.csv"):
        (conversation,) = read_conversations(tmp_path / name)
        assert conversation.messages == (USER, ANSWER)
        assert conversation.tools == (TOOL,)
        assert conversation.unmask


def test_unknown_format_is_a_problem_without_a_place():
    with pytest.raises(Problem, match="no known format"):
        detect_format({"x": 1})


SHARED = Path(__file__).parents[2] / "../shared/data/train"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_real_data_reads_without_a_bad_row():
    counts = {
        path.name: sum(not isinstance(row, RowError) for row in read_conversations(path)) for path in SHARED.iterdir()
    }
    assert counts == {"instruction.jsonl.xz": 17_119, "knowledge.jsonl.xz": 67_304, "skills.jsonl.xz": 9_981}
