"""Evaluations of every kind beside training data that holds some of their questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.harness.local_tasks import small_root, write_jsonl

from sengi.data.overlap import OverlapReport
from sengi.evaluate import contamination
from sengi.evaluate.contamination import contamination_note, find_contamination, write_contamination
from sengi.evaluate.suite import Suite
from sengi.mt_bench.options import MTBenchOptions
from sengi.recipe import Recipe

LONG = " ".join(f"w{number}" for number in range(30))


def chat(question: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_root(tmp_path_factory) as folder:
        yield folder


@pytest.fixture
def recipe(tmp_path: Path, root: Path) -> Recipe:
    """Training data with a question of each evaluation, and one of none."""
    gsm8k = "What is 1 + 1?"  # of write_root
    questions = [
        gsm8k,
        "Where is the red house?",
        f"So {LONG[10:80]} ...",
        "Who wrote the second turn?",
        "Never asked.",
    ]
    write_jsonl(tmp_path / "train.jsonl", [chat(question) for question in questions])
    write_jsonl(tmp_path / "own.jsonl", [{"question": text, "answer": "x"} for text in ("Is it so?", questions[1])])
    write_jsonl(tmp_path / "heldout.jsonl", [chat(LONG), chat("What else is there?")])
    write_jsonl(
        tmp_path / "bench" / "question.jsonl",
        [{"question_id": 1, "category": "writing", "turns": ["Write something.", questions[3]]}],
    )
    values = {"model_name_or_path": "m", "data": [{"path": str(tmp_path / "train.jsonl")}], "output_dir": "out"}
    values |= {
        "eval_data": [{"path": str(tmp_path / "heldout.jsonl")}],
        "eval_questions": [str(tmp_path / "own.jsonl")],
    }
    return Recipe.model_validate(values)


def found(reports: list[OverlapReport]) -> dict[str, tuple[int, list[str]]]:
    return {Path(report.evaluation).name: (report.rows, report.found_rows) for report in reports}


def test_every_kind_of_evaluation_is_compared(recipe: Recipe, root: Path, tmp_path: Path) -> None:
    bench = MTBenchOptions(tmp_path / "bench", "http://localhost:1/v1", "judge", tmp_path)
    tasks = ("gsm8k_cot", f"questions:{tmp_path / 'own.jsonl'}", f"heldout:{tmp_path / 'heldout.jsonl'}", "mt_bench")

    def compare(suite: Suite, own: bool = False) -> dict[str, tuple[int, list[str]]]:
        return found(find_contamination(recipe, suite, str(suite), own=own))

    expected = {
        "own.jsonl": (2, ["2"]),
        "heldout.jsonl": (2, ["1"]),
        "question.jsonl": (1, ["1"]),
        "gsm8k_cot": (2, ["1"]),
    }
    assert compare(Suite(tasks, data_root=root, mt_bench=bench)) == expected
    # Only what is asked counts.
    assert compare(Suite(("gsm8k_cot",), limit=1, data_root=root)) == {"gsm8k_cot": (1, [])}
    # A run's own files are compared when it is asked for, each once.
    assert compare(Suite((f"questions:{tmp_path / 'own.jsonl'}",)), own=True) == {
        name: expected[name] for name in ("heldout.jsonl", "own.jsonl")
    }
    assert find_contamination(recipe, None, "") == []


def test_it_is_done_again_only_where_a_file_changed(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(contamination, "BATCH", 2)
    first = find_contamination(recipe, None, "", own=True, progress=shares.append)
    assert shares
    assert shares == sorted(shares)
    with monkeypatch.context() as patch:
        patch.setattr(contamination, "_compare", None)
        assert find_contamination(recipe, None, "", own=True) == first
    write_jsonl(tmp_path / "train.jsonl", [chat("Is it so?"), chat("Something else")])
    assert found(find_contamination(recipe, None, "", own=True))["own.jsonl"] == (2, [])
    write_jsonl(tmp_path / "own.jsonl", [{"question": "Is it so really?", "answer": "x"}])
    write_jsonl(tmp_path / "train.jsonl", [chat("is it so really?")])
    assert found(find_contamination(recipe, None, "", own=True))["own.jsonl"] == (1, ["1"])


def test_a_note_names_the_first_and_counts_the_rest() -> None:
    assert contamination_note([OverlapReport("none", rows=5)]) == ""
    example = {"train": "train.jsonl:7", "evaluation": "t0:3", "kind": "exact"}
    reports = [OverlapReport(f"t{n}", rows=1000, found=n + 1, examples=[example]) for n in range(6)]
    assert contamination_note([OverlapReport("none", rows=5), *reports]) == (
        "21 of 6,005 evaluation questions stand in the training data (t0 1 of 1,000, t1 2 of 1,000, t2 3 of 1,000, "
        "t3 4 of 1,000, 2 more; the first: train.jsonl:7 as t0:3): their scores can be too good"
    )


def test_the_file_of_a_run_keeps_other_evaluations(tmp_path: Path) -> None:
    write_contamination(tmp_path, [OverlapReport("a", rows=1), OverlapReport("b", rows=2)])
    write_contamination(tmp_path, [OverlapReport("b", rows=3, found=1, found_rows=["2"])])
    kept = json.loads((tmp_path / "contamination.json").read_text())
    assert {name: (entry["rows"], entry["found_rows"]) for name, entry in kept.items()} == {
        "a": (1, []),
        "b": (3, ["2"]),
    }
