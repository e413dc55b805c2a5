"""A data root with a few rows of our own for every adapter, and a small index of lm-eval's tasks."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import lzma
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sengi.harness import task_index
from sengi.harness.lm_eval_tasks import TaskIndex

# lm-eval's whole tree takes 13 s to parse; these are the folders that the tests ask for.
FOLDERS = (
    "arc gsm8k winogrande truthfulqa ifeval hellaswag bbh/zeroshot hendrycks_math leaderboard mmlu/default mmlu_pro"
)
FOLDERS += " gpqa/zeroshot wikitext"
BBH = "boolean_expressions navigate"


def keep_small_index() -> None:
    """Write the file of kept names, as if lm-eval had only these folders."""
    index = TaskIndex.build([task_index.TASKS_FOLDER / folder for folder in FOLDERS.split()])
    task_index._keep(task_index._cache_file(), task_index._rows(index))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(text.encode("utf-8")))
    else:
        path.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def subjects() -> list[str]:
    names = [name for name in task_index.load_index() if name.startswith("mmlu_")]
    groups = {"mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities"}
    return sorted(
        name.removeprefix("mmlu_") for name in names if name not in groups and "pro" not in name.split("_")[1:2]
    )


def mmlu_row(subject: str, number: int) -> dict[str, Any]:
    choices = [str(number + offset) for offset in range(4)]
    return {"subject": subject, "question": f"{subject} {number}?", "choices": choices, "answer": number % 4}


@contextlib.contextmanager
def small_root(factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root of small files, and a cache of its own that holds the file of kept names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENGI_CACHE", str(factory.mktemp("cache")))
        keep_small_index()
        yield write_root(factory.mktemp("root"))


def write_root(root: Path) -> Path:
    """Write a small file for each adapter, in the layouts that people have."""
    names = [
        *subjects(),
        "professional_law",
        "professional_medicine",
        "professional_accounting",
        "professional_psychology",
    ]
    names = sorted(set(names))
    write_jsonl(root / "mmlu/test.jsonl.xz", [mmlu_row(name, n) for name in names for n in range(2)])
    write_jsonl(root / "mmlu/dev.jsonl", [mmlu_row(name, n) for name in names for n in range(5)])
    arc = {"query": "Question: Which one barks?", "choices": ["a cat", "a dog", "a fish"], "gold": 1}
    write_jsonl(root / "arc_easy.jsonl.xz", [arc, {**arc, "query": "Question: Which one swims?", "gold": 2}])
    hub = {
        "question": "Which one barks?",
        "choices": {"text": ["a cat", "a dog"], "label": ["1", "2"]},
        "answerKey": "2",
    }
    write_jsonl(root / "arc/arc_challenge.jsonl", [hub])
    write_jsonl(root / "arc/arc_challenge_train.jsonl", [{**hub, "question": f"Number {n}?"} for n in range(25)])
    gsm = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(6)]
    write_jsonl(root / "gsm8k/test.jsonl.xz", gsm[:2])
    write_jsonl(root / "gsm8k/train.jsonl", gsm)
    options = ["Sarah was better than Maria so Sarah", "Sarah was better than Maria so Maria"]
    write_jsonl(root / "winogrande.jsonl", [{"context_options": options, "continuation": "won.", "gold": 1}])
    swag = {"activity_label": "Cooking", "ctx_a": "A man cooks.", "ctx_b": "he", "endings": ["eats.", "x", "y", "z"]}
    write_jsonl(root / "hellaswag/validation.jsonl", [{**swag, "label": 0}, {**swag, "label": "3"}])
    truth = {"Type": "Adversarial", "Category": "Law", "Question": "Who?", "Best Answer": "Nobody", "Source": "us"}
    truth |= {"Correct Answers": "Nobody; No one.", "Incorrect Answers": "You; Me; They."}
    write_csv(root / "TruthfulQA.csv", [truth])
    write_jsonl(
        root / "ifeval/input_data.jsonl",
        [
            {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
            {
                "key": 2,
                "prompt": "Two sentences.",
                "instruction_id_list": ["length_constraints:number_sentences"],
                "kwargs": [{"relation": "at least", "num_sentences": 2}],
            },
        ],
    )
    write_bbh(root / "bbh.tar.xz")
    math = {"problem": "1+1?", "level": "Level 5", "type": "Counting & Probability", "solution": "It is $\\boxed{2}$."}
    write_jsonl(root / "math_test.jsonl.xz", [math, {**math, "level": "Level 1"}, {**math, "type": "Algebra"}])
    pro = {"question_id": 7, "question": "Which?", "options": ["a", "b", "c"], "answer": "B", "answer_index": 1}
    pro |= {"cot_content": "A: Let's think step by step. The answer is (B).", "category": "biology", "src": "own"}
    write_jsonl(root / "mmlu_pro/test.jsonl", [pro, {**pro, "category": "law"}])
    write_jsonl(root / "mmlu_pro/validation.jsonl", [pro] * 5)
    gpqa = {
        "Question": "Which?",
        "Correct Answer": "right",
        **{f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)},
    }
    for config in ("main", "diamond", "extended"):
        write_csv(root / f"gpqa/gpqa_{config}.csv", [{**gpqa, "Question": f"Which of {n}?"} for n in range(8)])
    musr = {
        "narrative": "A killed B.",
        "question": "Who?",
        "choices": "['A', 'B']",
        "answer_index": 0,
        "answer_choice": "A",
    }
    write_csv(root / "musr/murder_mysteries.csv", [musr])
    write_jsonl(root / "musr/team_allocation.jsonl", [{**musr, "choices": ["A", "B", "it's C"]}])
    return root


def write_bbh(path: Path, names: Iterable[str] = BBH.split()) -> None:
    with tarfile.open(path, "w:xz") as archive:
        for name in names:
            answer = "Yes" if name == "navigate" else "True"
            document = {"canary": "x", "examples": [{"input": f"{name} {n}?", "target": answer} for n in range(3)]}
            data = json.dumps(document).encode()
            entry = tarfile.TarInfo(f"bbh/{name}.json")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
