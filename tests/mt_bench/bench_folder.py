"""MT-Bench in small: FastChat's layout, four questions, one of which needs a reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sengi.mt_bench.options import MTBenchOptions

QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["Write about Rome.", "Now in one line."]},
    {"question_id": 111, "category": "math", "turns": ["What is 12 + 30?", "And twice that?"]},
    {"question_id": 91, "category": "roleplay", "turns": ["You are a dog. {Bark}!", "You are a cat."]},
    {"question_id": 141, "category": "stem", "turns": ["What barks?", "What swims?"]},
]
REFERENCES: list[dict[str, Any]] = [
    {
        "question_id": 111,
        "answer_id": "a",
        "model_id": "gpt-4",
        "choices": [{"index": 0, "turns": ["It is 42.", "It is 84."]}],
        "tstamp": 1.0,
    }
]
ANSWERS: dict[int | str, tuple[str, ...]] = {
    q["question_id"]: (f"first of {q['question_id']}", f"second of {q['question_id']}") for q in QUESTIONS
}


def prompt_row(name: str, template: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "single",
        "system_prompt": "You judge.",
        "prompt_template": template,
        "description": "",
        "category": "general",
        "output_format": "[[rating]]",
    }


PROMPTS: list[dict[str, Any]] = [
    {"name": "pair-v2", "type": "pairwise", "system_prompt": "", "prompt_template": "{question}", "output_format": ""},
    prompt_row("single-v1", "Rate.\n{question}\n<{answer}>"),
    prompt_row("single-math-v1", "Rate.\n{question}\nref {ref_answer_1}\n<{answer}>"),
    prompt_row("single-v1-multi-turn", "{question_1}\n{answer_1}\n{question_2}\n<{answer_2}>"),
    prompt_row(
        "single-math-v1-multi-turn",
        "ref {ref_answer_1} {ref_answer_2}\n{question_1}\n{answer_1}\n{question_2}\n<{answer_2}>",
    ),
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_bench(folder: Path) -> Path:
    write_rows(folder / "question.jsonl", QUESTIONS)
    write_rows(folder / "reference_answer" / "gpt-4.jsonl", REFERENCES)
    write_rows(folder / "judge_prompts.jsonl", PROMPTS)
    return folder


def make_options(folder: Path, url: str, **changes: Any) -> MTBenchOptions:
    """Options for a judge on this machine; waits are short and few."""
    settings: dict[str, Any] = {
        "data": folder / "data",
        "judge_base_url": url,
        "judge_model": "judge",
        "output": folder / "out",
        "concurrency": 2,
        "timeout": 20.0,
        "max_retries": 3,
        "repeat_share": 0.0,
    }
    return MTBenchOptions(**{**settings, **changes})
