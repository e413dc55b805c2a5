from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.mt_bench.bench_folder import (
    PROMPTS,
    QUESTIONS,
    REFERENCES,
    make_options,
    prompt_row,
    read_jsonl,
    write_bench,
    write_rows,
)

from sengi.errors import DataError, InputError
from sengi.mt_bench.files import load_bench
from sengi.mt_bench.prompts import JudgePrompt, parse_judge_prompt

REAL = Path(__file__).parents[3] / "shared" / "data" / "eval" / "mt_bench"


def test_questions_keep_their_order_and_only_math_gets_a_reference(tmp_path: Path) -> None:
    bench = load_bench(write_bench(tmp_path), "judge")
    assert [question.id for question in bench.questions] == [81, 111, 91, 141]
    references = {question.id: question.reference for question in bench.questions}
    assert references == {81: None, 111: ("It is 42.", "It is 84."), 91: None, 141: None}
    assert bench.prompt(bench.questions[1], 2).name == "single-math-v1-multi-turn"
    assert bench.prompt(bench.questions[0], 1).name == "single-v1"


def test_the_judge_prompts_are_found_one_folder_above_as_fastchat_has_them(tmp_path: Path) -> None:
    write_bench(tmp_path / "mt_bench")
    (tmp_path / "mt_bench" / "judge_prompts.jsonl").rename(tmp_path / "judge_prompts.jsonl")
    assert len(load_bench(tmp_path / "mt_bench", "judge").prompts) == 4


def test_limit_takes_the_first_questions_and_needs_references_for_them_only(tmp_path: Path) -> None:
    folder = write_bench(tmp_path)
    (folder / "reference_answer" / "gpt-4.jsonl").unlink()
    assert [question.id for question in load_bench(folder, "judge", 1).questions] == [81]


def test_the_reference_of_the_judges_name_wins(tmp_path: Path) -> None:
    folder = write_bench(tmp_path)
    own = [{**REFERENCES[0], "choices": [{"index": 0, "turns": ["mine", "mine too"]}]}]
    write_rows(folder / "reference_answer" / "org__judge.jsonl", own)
    assert load_bench(folder, "org/judge").questions[1].reference == ("mine", "mine too")
    # Rule: with several and none of its name, guessing would change scores in silence.
    with pytest.raises(DataError, match=r"none is of judge other; copy the one to use to other\.jsonl"):
        load_bench(folder, "other")


def change(rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    return [*rows[:-1], {**rows[-1], **changes}]


@pytest.mark.parametrize(
    ("file", "rows", "message"),
    [
        ("question.jsonl", change(QUESTIONS, turns=["one"]), r"question\.jsonl:4: turns: .* list of 2 texts"),
        ("question.jsonl", change(QUESTIONS, turns=["one", " "]), r"question\.jsonl:4: turns: .* not blank"),
        ("question.jsonl", change(QUESTIONS, category=None), r"question\.jsonl:4: category: null"),
        ("question.jsonl", change(QUESTIONS, question_id=81), r":4: question_id 81 stands in an earlier row"),
        ("question.jsonl", change(QUESTIONS, question_id=True), r":4: question_id: True; a number or a word"),
        ("question.jsonl", change(QUESTIONS, category="coding"), r"no reference answer to question 141"),
        ("reference_answer/gpt-4.jsonl", change(REFERENCES, choices=[]), r"gpt-4\.jsonl:1: choices\[0\]\.turns"),
        ("judge_prompts.jsonl", PROMPTS[:-1], r"no row named single-math-v1-multi-turn"),
        ("judge_prompts.jsonl", change(PROMPTS, type="pairwise"), r":5: single-math-v1-multi-turn: needs type single"),
        ("judge_prompts.jsonl", change(PROMPTS, system_prompt=None), r":5: system_prompt: null where a text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, file: str, rows: list[dict[str, Any]], message: str
) -> None:
    folder = write_bench(tmp_path)
    write_rows(folder / file, rows)
    with pytest.raises(DataError, match=message):
        load_bench(folder, "judge")


@pytest.mark.parametrize("file", ["question.jsonl", "reference_answer/gpt-4.jsonl", "judge_prompts.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    folder = write_bench(tmp_path)
    (folder / file).unlink()
    with pytest.raises(DataError, match=Path(file).parent.name if "/" in file else file):
        load_bench(folder, "judge")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{question} {answer.__class__}", r"\{answer\.__class__\} is no field of single-v1"),
        ("{question} {answer:>999999999}", r"\{answer\} is no field of single-v1"),
        ("{question} {answer!r}", "is no field"),
        ("{question} {answer} {ref_answer_1}", "is no field"),
        ("{question} {answer} {", "write a brace that is no field twice"),
        ("{question}", "lacks answer; the judge would not see it"),
    ],
)
def test_a_template_that_is_not_fastchats_is_refused(template: str, message: str) -> None:
    # Rule: the file is data from outside; str.format would reach into objects and pad to gigabytes.
    with pytest.raises(DataError, match=message):
        parse_judge_prompt(prompt_row("single-v1", template), "file:1")


@given(st.text(), st.text(), st.lists(st.text(), min_size=2, max_size=2))
def test_filling_is_what_str_format_does_for_plain_fields(before: str, after: str, answers: list[str]) -> None:
    # Rule: braces in a question or an answer are text; braces of the template are escaped twice.
    escaped = [part.replace("{", "{{").replace("}", "}}") for part in (before, after)]
    template = f"{escaped[0]}{{question_2}}|{{answer_1}}|{{ref_answer_2}}{escaped[1]}"
    values = {"question_2": "q{2}", "answer_1": answers[0], "ref_answer_2": "r2"}
    filled = JudgePrompt("single-math-v1-multi-turn", "", template).fill(["q1", "q{2}"], answers, ["r1", "r2"])
    assert filled == template.format(**values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge_base_url": "localhost:8000"}, "--judge-url localhost:8000: not an address"),
        ({"judge_model": " "}, "--judge-model: empty"),
        ({"concurrency": 0}, "--judge-concurrency 0"),
        ({"timeout": 0.0}, "--judge-timeout"),
        ({"timeout": float("nan")}, "--judge-timeout nan"),
        ({"max_retries": -1}, "max_retries -1"),
        ({"repeat_share": 1.5}, "--judge-repeat 1.5"),
        ({"limit": 0}, "--limit 0"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_options(tmp_path, **{"url": "http://localhost/v1", **changes})


@pytest.mark.parametrize("url", ["https://user:secret@host/v1", "https://host/v1?key=secret"])
def test_a_key_in_the_address_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="--judge-key-env") as caught:
        make_options(tmp_path, url)
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(not REAL.is_dir(), reason="the public files are not here")
def test_the_public_files_are_read_whole() -> None:
    bench = load_bench(REAL, "some-judge")
    assert len(bench.questions) == 80
    with_reference = [question for question in bench.questions if question.reference]
    assert len(with_reference) == 30
    # Rule: every prompt holds the question and the answers it is about, and no field is left.
    for question in bench.questions:
        for turn in (1, 2):
            text = bench.prompt(question, turn).fill(question.turns, ("ANSWER-1", "ANSWER-2"), question.reference)
            assert question.turns[turn - 1] in text
            assert f"ANSWER-{turn}" in text
            assert not question.reference or question.reference[turn - 1] in text
    rows = {row["name"]: row for row in read_jsonl(REAL / "judge_prompts.jsonl")}
    first = bench.questions[0]
    expected = rows["single-v1"]["prompt_template"].format(question=first.turns[0], answer="A")
    assert bench.prompt(first, 1).fill(first.turns, ("A", "B"), None) == expected
