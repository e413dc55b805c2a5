"""Questions, reference answers and judge prompts, from a folder in FastChat's layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sengi.data.files import read_rows
from sengi.data.rows import RowError, show
from sengi.errors import DataError
from sengi.mt_bench.prompts import JudgePrompt, parse_judge_prompt, prompt_name

# Categories whose answers are judged beside a reference (NEED_REF_CATS of FastChat's common.py)
REFERENCE_CATEGORIES = ("math", "reasoning", "coding", "arena-hard-200")
TURNS = 2
QUESTIONS = "question.jsonl"
QuestionId = int | str


@dataclass(frozen=True, slots=True)
class BenchQuestion:
    """One question of two turns.

    Attributes:
        id: as it stands in the file; a number in FastChat's own.
        category: decides the sampling temperature and whether a reference is shown to the judge.
        turns: the two user turns.
        reference: answers to both turns that the judge sees, None outside ``REFERENCE_CATEGORIES``.
    """

    id: QuestionId
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that is read from the user's files.

    Attributes:
        questions: in the order of the file, at least one.
        prompts: judge prompts by their FastChat name.
    """

    questions: tuple[BenchQuestion, ...]
    prompts: dict[str, JudgePrompt]

    def prompt(self, question: BenchQuestion, turn: int) -> JudgePrompt:
        """The judge prompt for a turn (1 or 2) of a question."""
        return self.prompts[prompt_name(question.reference is not None, turn)]

    def fingerprint(self) -> str:
        """SHA-256 of the content that decides scores."""
        content = [asdict(question) for question in self.questions]
        prompts = [asdict(self.prompts[name]) for name in sorted(self.prompts)]
        return hashlib.sha256(json.dumps([content, prompts], sort_keys=True).encode()).hexdigest()


def load_bench(folder: Path, judge_model: str, limit: int | None = None) -> Bench:
    """Read and check the files of MT-Bench.

    Args:
        folder: holds ``question.jsonl``, ``reference_answer/`` and ``judge_prompts.jsonl``; FastChat keeps the last
            one folder above, where it is found too.
        judge_model: reference answers of this name are taken, else the only ones there are.
        limit: only the first so many questions.

    Raises:
        DataError: a file is missing or a row cannot be used; names file and line.
    """
    folder = folder.expanduser()
    questions = _questions(_existing(folder / QUESTIONS))[:limit]
    needing = [question for question in questions if question.category in REFERENCE_CATEGORIES]
    if needing:
        file = _reference_file(folder / "reference_answer", judge_model)
        references = _references(file)
        missing = [str(question.id) for question in needing if question.id not in references]
        if missing:
            raise DataError(
                f"{file}: no reference answer to question {', '.join(missing[:10])}, which the judge needs for "
                f"{', '.join(sorted({question.category for question in needing}))}; add {len(missing)} row(s)"
            )
        questions = [
            BenchQuestion(question.id, question.category, question.turns, references[question.id])
            if question.category in REFERENCE_CATEGORIES
            else question
            for question in questions
        ]
    prompts = _prompts(_existing(folder / "judge_prompts.jsonl", folder.parent / "judge_prompts.jsonl"))
    return Bench(tuple(questions), prompts)


def _existing(*places: Path) -> Path:
    for place in places:
        if place.is_file():
            return place
    others = "".join(f" (nor {place})" for place in places[1:])
    raise DataError(f"{places[0]}: does not exist{others}; give a folder in FastChat's layout by --mt-bench")


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file:line``, row) of a JSONL file."""
    for number, row in read_rows(file):
        if isinstance(row, RowError):
            raise row
        yield f"{file}:{number}", row


def _questions(file: Path) -> list[BenchQuestion]:
    questions: dict[QuestionId, BenchQuestion] = {}
    for place, row in _rows(file):
        number = _question_id(row, place)
        if number in questions:
            raise DataError(f"{place}: question_id {show(number)} stands in an earlier row too; give each its own")
        category = row.get("category")
        if not isinstance(category, str) or not category.strip():
            raise DataError(f"{place}: category: {show(category)}; a word such as writing or math is needed")
        questions[number] = BenchQuestion(number, category, _turns(row.get("turns"), f"{place}: turns"))
    return list(questions.values())


def _references(file: Path) -> dict[QuestionId, tuple[str, ...]]:
    references: dict[QuestionId, tuple[str, ...]] = {}
    for place, row in _rows(file):
        choices = row.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        turns = first.get("turns") if isinstance(first, dict) else None
        references[_question_id(row, place)] = _turns(turns, f"{place}: choices[0].turns")
    return references


def _reference_file(folder: Path, judge_model: str) -> Path:
    """The judge's own references, as FastChat wants them; another judge takes the only ones that there are."""
    found = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    own = [file for file in found if file.stem == judge_model.replace("/", "__")]
    if own or len(found) == 1:
        return (own or found)[0]
    if not found:
        raise DataError(f"{folder}: holds no reference answers; put FastChat's reference_answer/gpt-4.jsonl there")
    raise DataError(
        f"{folder}: {', '.join(file.name for file in found)}: none is of judge {judge_model}; "
        f"copy the one to use to {judge_model.replace('/', '__')}.jsonl"
    )


def _prompts(file: Path) -> dict[str, JudgePrompt]:
    rows = {str(row.get("name")): (place, row) for place, row in _rows(file)}
    prompts = {}
    for name in (prompt_name(with_reference, turn) for with_reference in (False, True) for turn in (1, 2)):
        if name not in rows:
            raise DataError(f"{file}: no row named {name}; take FastChat's judge_prompts.jsonl")
        place, row = rows[name]
        prompts[name] = parse_judge_prompt(row, place)
    return prompts


def _question_id(row: dict[str, Any], place: str) -> QuestionId:
    value = row.get("question_id")
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{place}: question_id: {show(value)}; a number or a word is needed")
    return value


def _turns(value: Any, place: str) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or len(value) != TURNS
        or not all(isinstance(turn, str) and turn.strip() for turn in value)
    ):
        raise DataError(f"{place}: MT-Bench needs a list of {TURNS} texts that are not blank; mend the row")
    return tuple(value)
