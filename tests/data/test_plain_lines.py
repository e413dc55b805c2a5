"""A plain line gives the conversation that the general way gives; any other line is left to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.data.formats import read_conversations, to_conversation
from sengi.data.plain_lines import PlainLines
from sengi.data.rows import Problem, RowError, StrictDecoder

texts = st.text(alphabet=st.sampled_from(list('ab:"\\ \n{}[],é\u2028\U0001f642')), max_size=12)
messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": texts})
columns = st.dictionaries(
    st.sampled_from(["source", "dataset", "phase", "id", 'a"b', "c\\", "unmask", "system"]),
    st.one_of(texts, st.none(), st.integers(), st.booleans(), st.floats(allow_nan=True)),
)


def generally(line: str) -> Any:
    try:
        return to_conversation(StrictDecoder().value(line), file="f.jsonl", row_number=3)
    except (Problem, RowError) as error:
        return error


@settings(max_examples=200)
@given(st.lists(messages, max_size=3), columns, st.booleans(), st.sampled_from([None, (", ", " : "), (",", ":")]))
def test_a_plain_line_is_what_the_general_way_makes_of_it(
    said: list[dict[str, Any]], more: dict[str, Any], ascii_only: bool, separators: tuple[str, str] | None
) -> None:
    line = json.dumps({**more, "messages": said}, ensure_ascii=ascii_only, separators=separators)
    plain = PlainLines("f.jsonl")(line, 3)
    if plain is not None:
        assert plain == generally(line)


@settings(max_examples=200)
@given(st.lists(messages, min_size=1, max_size=3), columns, st.randoms(use_true_random=False))
def test_no_repeated_key_passes(said: list[dict[str, Any]], more: dict[str, Any], random: Any) -> None:
    # Rule: whatever key is written twice, in whatever spacing, the line goes to the decoder that refuses it.
    line = json.dumps({"messages": [*said, {"role": "assistant", "content": "a"}], **more}, ensure_ascii=False)
    places = [at for at in range(len(line)) if line[at] == "{" and _outside(line, at)]
    at = random.choice(places)
    key, end = json.JSONDecoder().raw_decode(line, at + 1)
    space = random.choice(["", " ", "\t"])
    value = random.choice(["1", "null", '"b:"'])
    twice = f"{line[: at + 1]}{line[at + 1 : end]}{space}:{space}{value}, {line[at + 1 :]}"
    json.loads(twice)  # what was made is JSON
    assert PlainLines("f.jsonl")(twice, 3) is None, key


def _outside(line: str, at: int) -> bool:
    """Whether a position is outside of every string."""
    inside = skip = False
    for character in line[:at]:
        if skip:
            skip = False
        elif character == "\\":
            skip = inside
        elif character == '"':
            inside = not inside
    return not inside


QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{",
        "1" * 5000,
        "[" * 5000,
        json.dumps({"text": "a"}),
        json.dumps({"messages": [QUESTION]}),
        json.dumps({"messages": [QUESTION, ANSWER], "tools": []}),
        json.dumps({"messages": [QUESTION, ANSWER], "unmask": True}),
        json.dumps({"messages": [QUESTION, ANSWER | {"train": False}]}),
        json.dumps({"messages": [QUESTION, ANSWER], "meta": {"a": 1}}),
        json.dumps({"messages": [QUESTION, ANSWER], "tags": ["a"]}),
        json.dumps({"messages": [QUESTION | {"content": None}, ANSWER]}),
        json.dumps({"messages": [QUESTION, ANSWER | {"role": "robot"}]}),
        json.dumps({"messages": [QUESTION | {"content": "\ud800"}, ANSWER]}),
        json.dumps({"messages": [QUESTION, ANSWER], "n": float("nan")}),
    ],
)
def test_other_lines_are_left_to_the_general_way(line: str) -> None:
    assert PlainLines("f.jsonl")(line, 1) is None


def test_the_usual_line_is_plain() -> None:
    row = {"messages": [QUESTION, ANSWER | {"content": 'say "hi": \n\\ 🙂'}], "source": "s", "id": 7}
    line = json.dumps(row, ensure_ascii=False)
    plain = PlainLines("dir/f.jsonl")(line + "\n", 5)
    assert plain is not None
    assert (plain.source, plain.file, plain.row) == ("s", "dir/f.jsonl", 5)
    assert plain == to_conversation(json.loads(line), file="dir/f.jsonl", row_number=5)


def test_files_with_both_kinds_keep_order_and_numbers(tmp_path: Path) -> None:
    lines = [
        json.dumps({"messages": [QUESTION, ANSWER]}),
        "",
        json.dumps({"messages": [QUESTION]}),
        '{"messages": [], "messages": []}',
        json.dumps({"instruction": "q", "output": "a"}),
        json.dumps({"messages": [QUESTION, ANSWER]}),
    ]
    (tmp_path / "f.jsonl").write_text("\n".join(lines) + "\n")
    found = list(read_conversations(tmp_path / "f.jsonl"))
    assert [row.row for row in found] == [1, 3, 4, 5, 6]
    assert [row.reason if isinstance(row, RowError) else "" for row in found] == [
        "",
        "no_assistant_turn",
        "duplicate_key",
        "",
        "",
    ]
