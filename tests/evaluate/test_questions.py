from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from sengi.errors import DataError
from sengi.evaluate.questions import Question, load_questions

COLOURS = {"question": "Which colour?", "choices": ["red", "green", "blue"]}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz", "q.jsonl.xz"])
def test_both_kinds_in_one_file(tmp_path: Path, name: str) -> None:
    rows = [
        {**COLOURS, "answer": 1, "topic": "colour", "group": "taught"},
        {"question": "Name it.", "answer": ["Alba", "the Alba"], "id": "x-7"},
        {"question": "How many?", "answer": 42, "choices": None},
    ]
    assert load_questions(write(tmp_path / name, *rows)) == [
        Question("1", "Which colour?", ("red", "green", "blue"), ("green",), "colour", "taught"),
        Question("x-7", "Name it.", None, ("Alba", "the Alba")),
        Question("3", "How many?", None, ("42",)),
    ]


# Index from 0, letter, or the text itself: all name the same choice.
@pytest.mark.parametrize("answer", [2, "2", "C", "blue", " blue "])
def test_ways_to_name_the_right_choice(tmp_path: Path, answer: object) -> None:
    assert load_questions(write(tmp_path / "q.jsonl", {**COLOURS, "answer": answer}))[0].answers == ("blue",)


def test_several_answers_may_stand_under_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "q", "answers": ["Alba", "the Alba"]})
    assert load_questions(path)[0].answers == ("Alba", "the Alba")


# Choices of digits: a text names the choice of that text, a number the index.
def test_choices_of_digits(tmp_path: Path) -> None:
    row = {"question": "One and one?", "choices": ["3", "2", "4"]}
    rows = write(tmp_path / "q.jsonl", {**row, "answer": "2"}, {**row, "answer": 2})
    assert [question.answers for question in load_questions(rows)] == [("2",), ("4",)]
    with pytest.raises(DataError, match="answer: '1' is none of the choices"):  # not the choice 2, whose index it is
        load_questions(write(tmp_path / "q.jsonl", {**row, "answer": "1"}))


# A table has only text in its cells: lists are JSON there, an empty cell means no choices.
def test_a_table_holds_lists_as_json(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(
        "question,choices,answer\n"
        'Which colour?,"[""red"", ""green"", ""blue""]",1\n'
        'Which other?,"[""red"", ""green"", ""blue""]",C\n'
        'Name it.,,"[""Alba"", ""the Alba""]"\n'
        "Which list?,,[draft]\n",
        encoding="utf-8",
    )
    answers = [question.answers for question in load_questions(path)]
    assert answers == [("green",), ("blue",), ("Alba", "the Alba"), ("[draft]",)]


# A choice's text wins over its being a letter only where both mean the same choice.
def test_a_letter_that_is_also_a_choice(tmp_path: Path) -> None:
    row = {"question": "Which letter?", "choices": ["A", "B"], "answer": "B"}
    assert load_questions(write(tmp_path / "q.jsonl", row))[0].answers == ("B",)
    with pytest.raises(DataError, match="a choice and the letter of another; give the index"):
        load_questions(write(tmp_path / "q.jsonl", {**row, "choices": ["B", "A"]}))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answer": "x"}, "question: null where a text is needed"),
        ({"question": "  ", "answer": "x"}, "question: '  ' where a text is needed"),
        ({"question": "q"}, "no answer"),
        ({"question": "q", "answer": ""}, "answer: ''; a text or a list of accepted texts"),
        ({"question": "q", "answer": []}, "a text or a list of accepted texts"),
        ({"question": "q", "answer": True}, "a text or a list of accepted texts"),
        ({**COLOURS, "answer": 3}, "3 is no index of 3 choices"),
        ({**COLOURS, "answer": -1}, "-1 is no index of 3 choices"),
        ({**COLOURS, "answer": "D"}, "'D' is none of the choices"),
        ({**COLOURS, "answer": True}, "is none of the choices"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "two or more texts"),
        ({"question": "q", "choices": [], "answer": "a"}, "two or more texts"),
        ({"question": "q", "choices": ["a", "a"], "answer": 0}, "two are the same"),
        ({"question": "q", "answer": "a", "topic": ["t"]}, "topic: a list; a word or a number"),
    ],
)
def test_a_bad_row_is_named_by_file_and_row(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "eval.jsonl", {"question": "q", "answer": "fine"}, row)
    with pytest.raises(DataError, match=words) as caught:
        load_questions(path)
    assert f"{path}:2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_are_unique(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "id": 5}
    with pytest.raises(DataError, match=r":2: id '5' is that of row 1 too"):
        load_questions(write(tmp_path / "q.jsonl", row, row))


def test_a_cut_line_is_an_error_not_a_shorter_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{"question": "q", "ans\n{"question": "r", "answer": "b"}\n')
    with pytest.raises(DataError, match=r"q.jsonl:2"):
        load_questions(path)
