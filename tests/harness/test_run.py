"""lm-eval's tasks under our model, from files to scores: the same numbers as lm-eval's own model class gives."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from tests.harness.local_tasks import small_root, write_jsonl
from tests.model.tiny_folder import write_tiny_folder

from sengi.errors import InputError
from sengi.evaluate.compare import compare
from sengi.evaluate.run_evaluations import write_tasks
from sengi.evaluate.saved_samples import load_samples
from sengi.evaluation import Evaluation
from sengi.harness.lm import SengiLM
from sengi.harness.output import write_output
from sengi.harness.run import evaluate_tasks, run_tasks
from sengi.harness.task_index import LocalTaskManager
from sengi.harness.tasks import load_tasks
from sengi.inference.loglikelihood import Scorer

TASKS = ["arc_easy", "winogrande", "truthfulqa_mc2", "gsm8k", "mmlu_humanities"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_root(tmp_path_factory) as folder:
        yield folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_folder(tmp_path_factory.mktemp("model"))
    config = folder / "config.json"  # gsm8k may write 256 tokens: a prompt beside them needs room
    text = config.read_text(encoding="utf-8")
    config.write_text(
        text.replace('"max_position_embeddings": 256', '"max_position_embeddings": 512'), encoding="utf-8"
    )
    return folder


def seed_all() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def draw_all() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(1))


@pytest.fixture(scope="module")
def evaluation(root: Path, model: Path) -> Evaluation:
    seed_all()
    expected = draw_all()
    seed_all()
    calls: list[tuple[int, int, str]] = []
    evaluation = evaluate_tasks(model, TASKS, num_fewshot=0, data_root=root, progress=lambda *call: calls.append(call))
    # An evaluation between two training steps must leave no trace in the random generators.
    assert draw_all() == expected
    assert calls[-1][0] == calls[-1][1]
    return evaluation


def row(evaluation: Evaluation, task: str, metric: str) -> dict[str, Any]:
    return next(one for one in evaluation.scores if (one["task"], one["metric"]) == (task, metric))


def test_the_same_scores_as_lm_evals_own_model(evaluation: Evaluation, root: Path, model: Path) -> None:
    theirs = simple_evaluate(
        HFLM(pretrained=str(model), device="cpu", dtype="float32"),
        tasks=TASKS,
        task_manager=LocalTaskManager(root),
        num_fewshot=0,
        bootstrap_iters=0,
    )
    assert theirs is not None
    assert evaluation.results["results"].keys() == theirs["results"].keys()
    for task, metrics in theirs["results"].items():
        for name, value in metrics.items():
            assert evaluation.results["results"][task][name] == pytest.approx(value, abs=1e-5), (task, name)
    hashes = {(task, one["prompt_hash"]) for task, records in theirs["samples"].items() for one in records}
    assert {(one["task"], one["prompt_hash"]) for one in evaluation.items} == hashes
    assert evaluation.results.keys() >= theirs.keys() - {"samples"}


def test_rows_carry_the_direction_that_the_task_has(evaluation: Evaluation) -> None:
    assert {row["higher_is_better"] for row in evaluation.scores} == {True}


def test_rows_rest_on_the_items(evaluation: Evaluation) -> None:
    # The score of every task is the mean of its items; n counts questions; intervals hold the score.
    groups = set(evaluation.results["groups"])
    assert groups == {"mmlu_humanities"}
    for one in evaluation.scores:
        assert one["low"] <= one["value"] <= one["high"] or one["n"] == 1
        items = [i for i in evaluation.items if (i["task"], i["metric"]) == (one["task"], one["metric"])]
        if one["task"] not in groups:
            assert one["n"] == len(items)
            assert one["value"] == pytest.approx(sum(i["correct"] for i in items) / len(items))
    humanities = row(evaluation, "mmlu_humanities", "acc")
    members = evaluation.results["group_subtasks"]["mmlu_humanities"]
    assert humanities["n"] == 2 * len(members)
    assert row(evaluation, "gsm8k", "exact_match,strict-match")["n"] == 2


def test_items_say_what_was_asked(evaluation: Evaluation) -> None:
    by_task = {one["task"]: one for one in reversed(evaluation.items) if one["metric"] in ("acc", "acc_norm")}
    arc = by_task["arc_easy"]
    assert (arc["question"], arc["answer"]) == ("Question: Which one barks?\nAnswer:", "a dog")
    assert arc["prediction"] in ("a cat", "a dog", "a fish")
    assert arc["correct"] == (arc["prediction"] == "a dog")
    winogrande = by_task["winogrande"]
    assert winogrande["answer"] == "Sarah was better than Maria so Maria"
    assert winogrande["correct"] == (winogrande["prediction"] == winogrande["answer"])
    assert winogrande["question"] == "Sarah was better than Maria so Sarah won."


def test_a_run_and_a_folder_of_samples_hold_the_same(evaluation: Evaluation, tmp_path: Path) -> None:
    write_tasks(tmp_path / "run", 100, "a" * 64, "m", 800, evaluation)
    write_output(tmp_path / "samples", "m", evaluation, {})
    comparison = compare([load_samples(tmp_path / "run"), load_samples(tmp_path / "samples")])
    assert comparison.not_compared == []
    assert all(row.paired.difference.value == 0 for row in comparison.rows)
    found = {(row.task, row.metric): row.before for row in comparison.rows}
    assert found.keys() >= {("mmlu_humanities", "acc"), ("gsm8k", "exact_match,strict-match"), ("arc_easy", "acc")}
    assert found["mmlu_humanities", "acc"] == pytest.approx(row(evaluation, "mmlu_humanities", "acc")["value"])
    assert {part.task for part in comparison.parts} == {"mmlu_humanities"}  # its subjects are no rows of their own


def test_results_say_how_they_came_about(evaluation: Evaluation, root: Path) -> None:
    assert str(root / "arc_easy.jsonl.xz") in evaluation.results["sengi"]["files"]
    assert evaluation.results["configs"]["arc_easy"]["custom_dataset"] == f"local files of arc under {root}"
    assert evaluation.results["config"]["random_seed"] == 0
    assert evaluation.seconds > 0


def test_a_chat_model_is_asked_through_its_template(root: Path, model: Path) -> None:
    chat, plain = (
        evaluate_tasks(model, ["arc_easy"], num_fewshot=0, limit=1, data_root=root, apply_chat_template=chat)
        for chat in (True, False)
    )
    [asked], [bare] = chat.samples["arc_easy"], plain.samples["arc_easy"]
    prompts = [str(sample["arguments"]) for sample in (asked, bare)]
    assert ["<|im_start|>user" in prompt for prompt in prompts] == [True, False]
    assert asked["prompt_hash"] != bare["prompt_hash"]


def test_limit_counts_questions_a_task(root: Path, model: Path) -> None:
    evaluation = evaluate_tasks(model, ["arc_easy", "mmlu_astronomy"], num_fewshot=0, limit=1, data_root=root)
    assert {one["n"] for one in evaluation.scores} == {1}
    with pytest.raises(InputError, match=r"--limit 0: no question would be left"):
        evaluate_tasks(model, ["arc_easy"], limit=0, data_root=root)


def test_what_cannot_be_scored_is_left_out_and_said(
    root: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An answer that alone is longer than the context: lm-eval's own class stops, others score it as wrong.
    good = {"query": "Question: Which one barks?", "choices": ["a dog", "a cat"], "gold": 0}
    write_jsonl(tmp_path / "arc_easy.jsonl", [good, {**good, "choices": ["a dog", "a cat " * 400]}, good])
    evaluation = evaluate_tasks(model, ["arc_easy"], num_fewshot=0, data_root=tmp_path)
    assert [(one["task"], one["id"]) for one in evaluation.excluded] == [("arc_easy", "1")]
    assert "the context of 512" in evaluation.excluded[0]["reason"]
    assert {one["n"] for one in evaluation.scores} == {2}
    assert {one["id"] for one in evaluation.items} == {"0", "2"}
    assert evaluation.results["n-samples"]["arc_easy"]["effective"] == 2


def test_cut_prompts_are_noted(root: Path, model: Path, tmp_path: Path) -> None:
    good = {"query": "Question: Which one barks?", "choices": ["a dog", "a cat"], "gold": 0}
    write_jsonl(tmp_path / "arc_easy.jsonl", [good, {**good, "query": "Question: " + "who barks " * 400}])
    evaluation = evaluate_tasks(model, ["arc_easy"], num_fewshot=0, data_root=tmp_path)
    assert len(evaluation.notes) == 1
    assert evaluation.notes[0].startswith("arc_easy: 1 questions are longer than the model's context of 512 tokens")
    assert evaluation.results["sengi"]["truncated"][0]["doc_id"] == 1
    assert {one["n"] for one in evaluation.scores} == {2}


def test_a_leaderboard_with_parts_missing(root: Path, model: Path, tmp_path: Path) -> None:
    for name in ("gpqa_main", "gpqa_diamond", "gpqa_extended"):
        (tmp_path / "gpqa").mkdir(exist_ok=True)
        (tmp_path / f"gpqa/{name}.csv").write_bytes((root / f"gpqa/{name}.csv").read_bytes())
    evaluation = evaluate_tasks(model, ["leaderboard_v2"], limit=4, data_root=tmp_path)
    board = [one for one in evaluation.scores if one["task"] == "open_llm_leaderboard_v2"]
    assert [one["metric"] for one in board] == ["GPQA"]
    missing = {one["id"] for one in evaluation.excluded if one["task"] == "open_llm_leaderboard_v2"}
    assert missing == {"IFEval", "BBH", "MATH Lvl 5", "MuSR", "MMLU-Pro"}
    assert any("no average, since BBH could not be run" in note for note in evaluation.notes)
    assert any("not comparable with the public leaderboard: --limit 4" in note for note in evaluation.notes)


def test_a_task_is_checked_before_the_model_is_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SengiLM, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match="no such task"):
        evaluate_tasks(Path("nowhere"), ["arc_esay"], data_root=root)


# IFEval writes 1,280 tokens and MATH 1,024: known before the first question, not after hours of the others.
def test_a_task_that_writes_more_than_the_context_holds_is_found_first(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scorer, "score", lambda *_, **__: pytest.fail("something was scored"))
    with pytest.raises(InputError, match=r"task leaderboard_ifeval writes up to 1,280 tokens, .* 512 leaves no room"):
        evaluate_tasks(model, ["arc_easy", "leaderboard_ifeval"], data_root=root)


def test_a_leaderboard_misses_parts_without_room(root: Path, model: Path, tmp_path: Path) -> None:
    for name in ("gpqa", "ifeval"):
        (tmp_path / name).symlink_to(root / name)
    kinds = "Algebra|Counting & Probability|Geometry|Intermediate Algebra|Number Theory|Prealgebra|Precalculus"
    row = {"problem": "1+1?", "level": "Level 5", "solution": "It is $\\boxed{2}$."}
    write_jsonl(tmp_path / "math_test.jsonl", [{**row, "type": kind} for kind in kinds.split("|")])
    evaluation = evaluate_tasks(model, ["leaderboard_v2"], data_root=tmp_path, limit=2)
    assert [one["metric"] for one in evaluation.scores if one["task"] == "open_llm_leaderboard_v2"] == ["GPQA"]
    reasons = {one["id"]: one["reason"] for one in evaluation.excluded}
    assert "leaderboard_ifeval writes up to 1,280 tokens" in reasons["IFEval"]
    assert "writes up to 1,024 tokens" in reasons["MATH Lvl 5"]
    assert any(
        "no average, since IFEval could not be run: task leaderboard_ifeval" in note for note in evaluation.notes
    )


# undisturbed() gives the GPU's memory back to the training: by then the model must be gone, without a collection.
def test_a_scored_model_is_freed_when_its_evaluation_ends(root: Path, model: Path) -> None:
    loaded = load_tasks(["arc_easy"], root, num_fewshot=0)
    lm = SengiLM(model, device="cpu", progress=lambda *_: None)
    kept = weakref.ref(lm.model)
    gc.collect()
    gc.disable()
    try:
        run_tasks(lm, loaded, limit=1)
        del lm
        assert kept() is None
    finally:
        gc.enable()
