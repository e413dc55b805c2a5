"""Evaluation questions from a file: multiple choice and short answers, one shape each.

A row is one of::

    {"question": "...", "choices": ["...", "..."], "answer": 0 | "A" | "the choice's text"}
    {"question": "...", "answer": "..." | ["...", "..."]}

with ``id``, ``topic`` and ``group`` if wanted. A file may hold rows of both kinds.
"""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sengi.data.files import read_rows
from sengi.data.rows import RowError, show
from sengi.errors import DataError


@dataclass(frozen=True, slots=True)
class Question:
    """One question with what counts as right.

    Attributes:
        id: unique in its file; the row number where the row names none.
        question: the text of the user's turn.
        choices: the possible answers of a multiple choice question; None for a short answer.
        answers: accepted texts; for multiple choice the one right choice.
        topic: what it is about, or empty; scores are given by it.
        group: what it tests, for example ``taught`` or ``control``, or empty; scores are given by it.
    """

    id: str
    question: str
    choices: tuple[str, ...] | None
    answers: tuple[str, ...]
    topic: str = ""
    group: str = ""


def load_questions(path: str | Path) -> list[Question]:
    """Read a file of questions, whole: an evaluation on part of a file would be another evaluation.

    Args:
        path: JSONL, JSON, CSV or Parquet, plain or compressed.

    Returns:
        The questions in the order of the file, at least one.

    Raises:
        DataError: a row is not a question; the message names file and row.
    """
    questions: list[Question] = []
    places: dict[str, int] = {}
    for number, row in read_rows(path):
        if isinstance(row, RowError):
            raise row
        question = parse_question(row, f"{path}:{number}", number)
        if question.id in places:
            raise DataError(
                f"{path}:{number}: id {show(question.id)} is that of row {places[question.id]} too; "
                "ids pair the answers of two models, give each row its own"
            )
        places[question.id] = number
        questions.append(question)
    return questions


def parse_question(row: dict[str, Any], place: str, number: int) -> Question:
    """Turn one row into a question.

    Args:
        row: the columns of the row.
        place: ``file:row``, for messages.
        number: row number, the id of a row that names none.

    Raises:
        DataError: a column is missing or of another kind.
    """
    text = row.get("question")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: question: {show(text)} where a text is needed; write the question there")
    column = "answers" if row.get("answer") is None and "answers" in row else "answer"
    if column not in row:
        raise DataError(f"{place}: no answer; add the column answer with the accepted text")
    # Tables have every column in every row: an empty one means that it is not a choice question.
    choices = _choices(row["choices"], place) if row.get("choices") not in (None, "") else None
    answers = (_right_choice(row[column], choices, place),) if choices else _accepted(row[column], place)
    number_or_id = row.get("id")
    return Question(
        id=str(number if number_or_id is None else number_or_id),
        question=text,
        choices=choices,
        answers=answers,
        topic=_label(row, "topic", place),
        group=_label(row, "group", place),
    )


def _choices(value: Any, place: str) -> tuple[str, ...]:
    value = _unpacked(value)
    texts = [str(c) if isinstance(c, int | float) and not isinstance(c, bool) else c for c in _as_list(value)]
    if len(texts) < 2 or not all(isinstance(c, str) and c.strip() for c in texts):
        raise DataError(f"{place}: choices: {show(value)}; a list of two or more texts is needed")
    if len(set(texts)) != len(texts):
        raise DataError(f"{place}: choices: two are the same; a question has one right choice")
    return tuple(texts)


def _right_choice(answer: Any, choices: tuple[str, ...], place: str) -> str:
    """The text of the right choice, given by its text, its letter or its index from 0."""
    letters = string.ascii_uppercase[: len(choices)]
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return choices[answer]
        raise DataError(f"{place}: answer: {answer} is no index of {len(choices)} choices; count them from 0")
    text = answer.strip() if isinstance(answer, str) else ""
    by_text = [choice for choice in choices if choice.strip() == text]
    by_letter = [choices[letters.index(text)]] if len(text) == 1 and text in letters else []
    if by_text and by_letter and by_text != by_letter:
        raise DataError(f"{place}: answer: {show(answer)} is a choice and the letter of another; give the index from 0")
    if found := by_text or by_letter:
        return found[0]
    # the cell of a table: an index in digits; beside choices of digits it would be another choice than it says
    if text.isdecimal() and int(text) < len(choices) and not any(choice.strip().isdecimal() for choice in choices):
        return choices[int(text)]
    raise DataError(
        f"{place}: answer: {show(answer)} is none of the choices; give a choice's text, a letter A-{letters[-1]} "
        f"or an index 0-{len(choices) - 1}"
    )


def _accepted(value: Any, place: str) -> tuple[str, ...]:
    """The accepted texts of a short answer."""
    given = _as_list(_unpacked(value))
    texts = [str(a) if isinstance(a, int | float) and not isinstance(a, bool) else a for a in given]
    if not texts or not all(isinstance(a, str) and a.strip() for a in texts):
        raise DataError(f"{place}: answer: {show(value)}; a text or a list of accepted texts is needed")
    return tuple(texts)


def _label(row: dict[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{place}: {column}: {show(value)}; a word or a number is needed")
    return str(value)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _unpacked(value: Any) -> Any:
    """A list that a CSV cell holds as JSON text; anything else as it is."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            found = json.loads(value)
        except ValueError:
            return value  # a text that begins with a bracket
        return found if isinstance(found, list) else value
    return value
