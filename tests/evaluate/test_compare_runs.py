"""Two run folders, or a run folder and a folder of samples, are compared as two folders of samples are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sengi.errors import DataError
from sengi.evaluate.compare import Comparison, compare
from sengi.evaluate.run_evaluations import Point, read_results, read_tasks, write_tasks
from sengi.evaluate.run_scores import by_task, score_line
from sengi.evaluate.saved_samples import load_samples
from sengi.evaluation import Evaluation
from sengi.harness.items import items_of
from sengi.harness.output import write_output

TASK = SimpleNamespace(OUTPUT_TYPE="generate_until", doc_to_text=lambda doc: doc["q"])
A, B = "a" * 64, "b" * 64


def record(task: str, number: int, used: str = "none", **metrics: Any) -> dict[str, Any]:
    """What lm-eval 0.4.13 keeps of a question while it runs: tuples and numbers of NumPy are as metrics gave them."""
    hashes = {key: hashlib.sha256(f"{key} {task} {number}".encode()).hexdigest() for key in ("doc_hash", "prompt_hash")}
    return {
        "doc_id": number,
        "doc": {"q": f"{task} {number}?"},
        "target": "0",
        "arguments": [(f"{task} {number}?", " a")],
        "resps": [["x"]],
        "filtered_resps": ["x"],
        "filter": used,
        "metrics": list(metrics),
        "target_hash": "t",
        **hashes,
        **metrics,
    }


def evaluation(samples: dict[str, list[dict[str, Any]]], **results: Any) -> Evaluation:
    scores = [
        {"task": task, "metric": metric, "group": "all", "value": 0.5, "low": 0.4, "high": 0.6, "n": len(records)}
        for task, records in samples.items()
        for metric in records[0]["metrics"]
    ]
    items = items_of(dict.fromkeys(samples, TASK), samples)  # type: ignore[arg-type]
    return Evaluation(scores=scores, items=items, samples=samples, results=results)


def saved_both_ways(folder: Path, found: Evaluation) -> tuple[Path, Path]:
    """A run whose last checkpoint was evaluated, and what ``--output`` would write of the same."""
    write_tasks(folder / "run", 100, A, "m", 800, found)
    write_output(folder / "samples", "m", found, {})
    return folder / "run", folder / "samples"


def compared(first: Path, other: Path) -> Comparison:
    return compare([load_samples(first), load_samples(other)])


def texts(shift: float) -> list[dict[str, Any]]:
    """60 texts of 50 to 109 words; ``shift`` nats a word less likely than in the first evaluation."""
    values = [(-(2.0 + 0.01 * (k % 7) + shift) * (50 + k), 50 + k) for k in range(60)]
    return [
        record("wikitext", k, word_perplexity=pair, bits_per_byte=(np.float64(pair[0]), pair[1] * 5))
        for k, pair in enumerate(values)
    ]


# lm-eval keeps (log-likelihood, words) of each text: neither that pair nor its mean is a result of one question.
def test_perplexities_of_runs_keep_their_direction_and_weights(tmp_path: Path) -> None:
    good = saved_both_ways(tmp_path / "good", evaluation({"wikitext": texts(0.0)}))
    bad = saved_both_ways(tmp_path / "bad", evaluation({"wikitext": texts(0.5)}))
    of_runs, of_samples = compared(good[0], bad[0]), compared(good[1], bad[1])
    assert of_runs.rows == of_samples.rows
    row = {row.metric: row for row in of_runs.rows}["log word_perplexity"]
    assert (row.verdict, row.higher_is_better) == ("worse", False)
    assert row.paired.difference.value == pytest.approx(0.5)
    words = np.arange(50, 110)
    assert row.before == pytest.approx(np.average(2.0 + 0.01 * (np.arange(60) % 7), weights=words))


def test_scores_that_are_no_mean_are_listed_and_have_no_items(tmp_path: Path) -> None:
    # (gold, prediction): what f1 is computed of.
    samples = {"multirc": [record("multirc", k, acc=np.int64(k % 2), f1=(k % 2, np.int64(1))) for k in range(12)]}
    found = evaluation(samples)
    assert {(item["metric"], item["correct"]) for item in found.items} == {("acc", 0), ("acc", 1)}
    run, _ = saved_both_ways(tmp_path, found)
    comparison = compared(run, run)
    assert [row.metric for row in comparison.rows] == ["acc"]
    assert comparison.not_compared == ["multirc: f1: no mean over questions, so no question has a part in it"]


def test_questions_with_several_instructions_weigh_by_them(tmp_path: Path) -> None:
    # IFEval by instruction: the score is the share of all instructions, so the best checkpoint can be corrected.
    truths = [[k % 2 == 0] * (1 + k % 3) for k in range(30)]
    samples = {"ifeval": [record("ifeval", k, inst_level_strict_acc=row) for k, row in enumerate(truths)]}
    run, samples_folder = saved_both_ways(tmp_path, evaluation(samples))
    items = {100: by_task(read_results(read_tasks(run, A)[100]))}
    share = sum(map(sum, truths)) / sum(map(len, truths))
    point = Point(100, 800, share, share, share, 30, True)
    assert score_line("ifeval", "inst_level_strict_acc", "all", [point], items, {}).uncorrected == ""
    assert compared(run, run).rows[0].before == pytest.approx(share)
    assert compared(run, run).rows == compared(samples_folder, samples_folder).rows


def group_of_two(shift: int) -> Evaluation:
    # MMLU-Pro's one filter is named: scores of the group are named by it in lm-eval's results.
    right = {"pro_law": [int(k < 10 + shift) for k in range(20)], "pro_math": [int(k < 5 + shift) for k in range(10)]}
    samples = {
        task: [record(task, k, "custom-extract", exact_match=value) for k, value in enumerate(values)]
        for task, values in right.items()
    }
    score = sum(map(sum, right.values())) / 30
    tree = {"groups": {"pro": {"exact_match,custom-extract": score}}, "group_subtasks": {"pro": list(right)}}
    return evaluation(samples, **tree, results={}, higher_is_better={})


def test_a_group_is_one_row_in_runs_too(tmp_path: Path) -> None:
    before = saved_both_ways(tmp_path / "before", group_of_two(0))
    after = saved_both_ways(tmp_path / "after", group_of_two(5))
    for comparison in (compared(before[0], after[0]), compared(before[1], after[1]), compared(before[0], after[1])):
        (row,) = comparison.rows
        assert (row.task, row.metric, row.paired.difference.n) == ("pro", "exact_match,custom-extract", 30)
        assert (row.before, row.after) == (pytest.approx(0.5), pytest.approx(25 / 30))
        assert [part.part for part in comparison.parts] == ["pro_law", "pro_math"]
        assert comparison.not_compared == []


def test_own_questions_of_a_run_are_those_of_its_samples(tmp_path: Path) -> None:
    item = {"task": "own", "metric": "accuracy", "group": "taught", "topic": "", "prediction": "x", "answer": "Ünï"}
    items = [item | {"id": f"q{k}", "question": f"{k}?", "correct": k % 2, "correct_sum": 0} for k in range(12)]
    run, samples = saved_both_ways(tmp_path, Evaluation(items=items))
    assert [row.metric for row in compared(run, samples).rows] == ["accuracy", "accuracy_sum"]


def test_two_suites_of_one_step_name_both_files(tmp_path: Path) -> None:
    # The same task with other settings: which of the two is meant, only the user knows.
    samples = {"arc": [record("arc", k, acc=k % 2) for k in range(12)]}
    run = tmp_path / "run"
    write_tasks(run, 100, A, "m", 800, evaluation(samples))
    write_tasks(run, 100, B, "m", 800, evaluation({"arc": samples["arc"][:5]}))
    words = r"step-00000100-tasks-bbbbbbbb\.items\.jsonl and step-00000100-tasks\.items\.jsonl both hold 'acc' of 'arc'"
    with pytest.raises(DataError, match=f"{words}.*name the file to compare"):
        load_samples(run)
    alone = run / "evaluations/step-00000100-tasks.items.jsonl"
    assert compared(alone, alone).rows[0].paired.difference.n == 12
    # Suites of different tasks lie together.
    write_tasks(tmp_path / "other", 100, A, "m", 800, evaluation(samples))
    more = {"gsm8k": [record("gsm8k", k, acc=1) for k in range(12)]}
    write_tasks(tmp_path / "other", 100, B, "m", 800, evaluation(more))
    assert set(load_samples(tmp_path / "other").tasks) == {"arc", "gsm8k"}
