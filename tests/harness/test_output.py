"""The files that other tools read: lm-eval's layout, for lm-eval's tasks and for every other evaluator."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import lm_eval.utils
import numpy as np
import pytest
from lm_eval.loggers import EvaluationTracker

from sengi.errors import StorageError
from sengi.evaluation import Evaluation
from sengi.harness.lm_eval_tasks import datasets
from sengi.harness.output import sanitized, write_output


def sample(number: int) -> dict[str, Any]:
    return {
        "doc_id": number,
        "doc": {"question": f"Ünïcode\u2028 {number}?", "choices": ["a", "b"], "score": np.float64(0.5)},
        "target": number % 2,
        "arguments": [("Question", " a"), ("Question", " b")],
        "resps": [[(-1.0, True)], [(-2.0, False)]],
        "filtered_resps": [(-1.0, True), (-2.0, False)],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": f"d{number}",
        "prompt_hash": f"p{number}",
        "target_hash": f"t{number}",
        "acc": np.int64(number % 2),
    }


def harness_evaluation() -> Evaluation:
    results = {
        "results": {"arc_easy": {"name": "arc_easy", "alias": "arc_easy", "sample_len": 3, "acc,none": 1 / 3}},
        "group_subtasks": {"arc_easy": []},
        "configs": {"arc_easy": {"task": "arc_easy"}},
        "versions": {"arc_easy": 1.0},
        "n-shot": {"arc_easy": 0},
        "higher_is_better": {"arc_easy": {"acc": True}},
        "n-samples": {"arc_easy": {"original": 3, "effective": 3}},
        "config": {"model": "sengi"},
    }
    scores = [{"task": "arc_easy", "metric": "acc", "group": "all", "value": 1 / 3, "low": 0.1, "high": 0.8, "n": 3}]
    samples = {"arc_easy": [sample(number) for number in range(3)]}
    return Evaluation(scores=scores, samples=samples, results=results, notes=["a note"], seconds=1.5)


def written(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    files = [str(path) for path in folder.rglob("*") if path.is_file()]
    results = json.loads(Path(*lm_eval.utils.get_results_filenames(files)).read_text(encoding="utf-8"))
    samples = {}
    for file in lm_eval.utils.get_sample_results_filenames(files):
        lines = Path(file).read_text(encoding="utf-8").split("\n")
        name = lm_eval.utils.get_file_task_name(Path(file).name)
        samples[name] = [json.loads(line) for line in lines if line]
    return results, samples


def test_the_same_layout_as_lm_evals_own_writer(tmp_path: Path) -> None:
    # The same results through lm-eval's EvaluationTracker: every key it writes is there, samples are equal.
    evaluation = harness_evaluation()
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.log_experiment_args("sengi", "pretrained=org/model", None, None, True)
    theirs = copy.deepcopy(evaluation)
    tracker.save_results_aggregated(theirs.results, theirs.samples)
    tracker.save_results_samples("arc_easy", theirs.samples["arc_easy"])
    path = write_output(tmp_path / "ours", "org/model", evaluation, {"model_source": "sengi"})
    assert path.parent == tmp_path / "ours" / "org__model"
    (their_results, their_samples), (results, samples) = written(tmp_path / "theirs"), written(tmp_path / "ours")
    assert samples == their_samples
    assert results.keys() >= their_results.keys() - {"start_time", "end_time"}
    for key in ("results", "versions", "n-shot", "task_hashes", "model_name", "model_name_sanitized", "chat_template"):
        assert results[key] == their_results[key], key


def test_our_numbers_stand_beside(tmp_path: Path) -> None:
    evaluation = harness_evaluation()
    evaluation.scores.append({**evaluation.scores[0], "metric": "ppl", "low": math.nan, "high": math.nan})
    write_output(tmp_path, "m", evaluation, {"limit": 3})
    results, _ = written(tmp_path)
    assert results["sengi"]["scores"][0] == evaluation.scores[0]
    assert results["sengi"]["scores"][1]["low"] is None  # JSON has no NaN
    assert results["sengi"]["notes"] == ["a note"]
    assert results["config"] == {"model": "sengi", "limit": 3}


def test_the_evaluation_is_not_changed(tmp_path: Path) -> None:
    # lm-eval's writer turns the samples into text in place; a comparison afterwards would read other values.
    evaluation = harness_evaluation()
    before = copy.deepcopy(evaluation)
    write_output(tmp_path, "m", evaluation, {})
    assert evaluation == before


def own_evaluation() -> Evaluation:
    item = {"task": "questions:facts.jsonl", "metric": "accuracy", "prediction": "Rome", "answer": "Paris"}
    item |= {"question": "The capital of France?", "group": "", "topic": "europe"}
    items = [{**item, "id": "q1", "correct": 0}, {**item, "id": "q2", "correct": 1, "prediction": "Paris"}]
    score = {"task": "questions:facts.jsonl", "metric": "accuracy", "value": 0.5, "low": 0.1, "high": 0.9, "n": 2}
    return Evaluation(scores=[{**score, "group": "all"}, {**score, "group": "topic=europe"}], items=items)


def test_other_evaluators_get_the_same_shape(tmp_path: Path) -> None:
    write_output(tmp_path, "m", own_evaluation(), {})
    results, samples = written(tmp_path)
    assert results["results"]["questions:facts.jsonl"]["accuracy,none"] == 0.5
    assert results["n-samples"]["questions:facts.jsonl"] == {"original": 2, "effective": 2}
    ours = samples["questions__facts.jsonl"]
    assert ours[0].keys() == sample(0).keys() - {"acc"} | {"accuracy", "topic"}
    assert [one["doc_id"] for one in ours] == ["q1", "q2"]
    assert [one["accuracy"] for one in ours] == [0, 1]
    assert ours[0]["prompt_hash"] == ours[1]["prompt_hash"] == lm_eval.utils.hash_string("The capital of France?")
    assert ours[0]["doc_hash"] != ours[1]["doc_hash"]
    assert ours[0]["doc"]["topic"] == "europe"


@pytest.mark.parametrize(("metric", "higher"), [("score", True), ("judge_noise", False), ("loss", False)])
def test_directions_are_those_of_the_metrics(tmp_path: Path, metric: str, higher: bool) -> None:
    score = {"task": "mt_bench", "metric": metric, "group": "all", "value": 0.5, "low": 0.1, "high": 0.9, "n": 2}
    write_output(tmp_path, "m", Evaluation(scores=[score]), {})
    assert written(tmp_path)[0]["higher_is_better"] == {"mt_bench": {metric: higher}}


def test_lm_evals_tasks_without_its_results(tmp_path: Path) -> None:
    # Evaluations that were merged keep scores and samples: filters, groups and tasks are still where readers look.
    score = {"group": "all", "value": 0.5, "low": 0.1, "high": 0.9, "n": 2}
    scores = [
        {"task": "mmlu", "metric": "acc", **score},
        {"task": "gsm8k", "metric": "exact_match,strict-match", **score},
    ]
    scores.append({"task": "open_llm_leaderboard_v1", "metric": "ARC", **score})
    write_output(tmp_path, "m", Evaluation(scores=scores, samples={"gsm8k": [sample(0), sample(1)]}), {})
    results, samples = written(tmp_path)
    assert results["results"]["mmlu"]["acc,none"] == results["results"]["gsm8k"]["exact_match,strict-match"] == 0.5
    assert results["results"].keys() == {"mmlu", "gsm8k"}  # a leaderboard is no task; it stands under sengi
    assert len(results["sengi"]["scores"]) == 3
    assert len(samples["gsm8k"]) == 2


def test_samples_load_as_a_dataset(tmp_path: Path) -> None:
    path = write_output(tmp_path, "m", harness_evaluation(), {})
    file = next(path.parent.glob("samples_*.jsonl"))
    rows = datasets.Dataset.from_json(str(file), cache_dir=str(tmp_path / "cache"))
    assert rows["acc"][:] == [0, 1, 0]
    assert rows[0]["arguments"]["gen_args_1"]["arg_1"] == " b"


def test_two_evaluations_lie_side_by_side(tmp_path: Path) -> None:
    first = write_output(tmp_path, "m", harness_evaluation(), {})
    second = write_output(tmp_path, "m", harness_evaluation(), {})
    assert first != second
    assert len(list(tmp_path.rglob("*.json*"))) == 4


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match=r"--output .*file.*: cannot be written \(Not a directory\)"):
        write_output(tmp_path / "file", "m", harness_evaluation(), {})


@pytest.mark.parametrize("name", ["org/model", "a<b>:c", "plain", "/abs/path", r"c:\x"])
def test_names_are_cleaned_as_lm_eval_does(name: str) -> None:
    assert sanitized(name) == lm_eval.utils.sanitize_model_name(name)
