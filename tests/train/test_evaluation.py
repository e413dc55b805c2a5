"""Tasks scored while a run trains: what is scored, where it lands, and that the training never feels it."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import warm
from tests.model.tiny_folder import write_tiny_folder
from tests.train.crash_harness import dynamics
from tests.train.told import start, state

from sengi.cli.app import run as command
from sengi.errors import InputError, RecipeError, StoppedByRequest, StorageError
from sengi.evaluation import Evaluation
from sengi.train import evaluation
from sengi.train.undisturbed import undisturbed

STEPS = 5


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, training data, held-out data, questions."""
    folder = tmp_path_factory.mktemp("parts")
    write_tiny_folder(folder / "model")
    for name, first, count in (("train", 0, 20), ("heldout", 50, 3)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"What is {n} plus {n % 7}?"},
                    {"role": "assistant", "content": f"It is {n + n % 7}."},
                ]
            }
            for n in range(first, first + count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [
        {"question": f"What is {n} plus 1?", "choices": [str(n + 1), str(n + 2), str(n)], "answer": 0, "id": f"q{n}"}
        for n in range(4)
    ]
    # one that is answered in writing
    questions.append({"question": "What is 1 plus 1?", "answer": "2", "id": "written"})
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


Recipe = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(parts: Path, tmp_path: Path) -> Recipe:
    """Values of a run of five steps whose tasks are the questions; keyword arguments change or (None) remove keys."""

    def values(**changes: Any) -> dict[str, Any]:
        recipe = {
            "model_name_or_path": str(parts / "model"),
            "data": [{"path": str(parts / "train.jsonl")}],
            "eval_data": [{"path": str(parts / "heldout.jsonl")}],
            "output_dir": str(tmp_path / "run"),
            "effective_batch_size": 4,
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "max_tokens_per_device": 128,
            "dtype": "float32",
            "eval_tasks": [f"questions:{parts / 'own.jsonl'}"],
            "eval_steps": 2,
            "save_total_limit": None,
        }
        return {key: value for key, value in (recipe | changes).items() if value is not None or key not in recipe}

    return values


def scored_steps(run: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (run / "evaluations").glob("step-*-tasks.json"))


def status(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that leaves everything behind it changed that a process has in common."""
    score_step = evaluation.score_step

    def scored(*arguments: Any) -> Evaluation:
        found = score_step(*arguments)
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_float32_matmul_precision("medium")
        os.environ["SENGI_TEST_LEFT_BEHIND"] = "1"
        return found

    monkeypatch.setattr(evaluation, "score_step", scored)


# The one promise above all: a run with evaluations at every step is the run without them, bit by bit.
@pytest.mark.usefixtures("hostile")
def test_a_run_with_evaluations_is_bit_equal_to_one_without(recipe: Recipe, tmp_path: Path) -> None:
    without, with_ = tmp_path / "without", tmp_path / "with"
    start(recipe(output_dir=str(without), eval_tasks=None, eval_data=None, eval_steps=None))
    start(recipe(output_dir=str(with_), eval_steps=1))
    assert scored_steps(with_) == list(range(STEPS + 1))
    assert dynamics(with_) == dynamics(without)
    assert state(with_ / f"checkpoint-{STEPS}") == state(without / f"checkpoint-{STEPS}")
    assert "SENGI_TEST_LEFT_BEHIND" not in os.environ


def test_what_is_global_is_put_back_also_after_an_error() -> None:
    def look() -> list[Any]:
        return [
            random.getstate(),
            *(part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()),
            torch.get_rng_state().tolist(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            dict(os.environ),
        ]

    before = look()

    def disturb() -> None:
        with undisturbed():
            random.random()
            np.random.rand()
            torch.rand(1)
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            torch.use_deterministic_algorithms(True)
            os.environ["SENGI_TEST_LEFT_BEHIND"] = "1"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        disturb()
    assert look() == before


def test_tasks_are_scored_before_at_every_point_and_after(recipe: Recipe, tmp_path: Path, parts: Path) -> None:
    told = start(recipe())
    run = tmp_path / "run"
    assert scored_steps(run) == [0, 2, 4, 5]
    # what is scored is on disk: a checkpoint at every evaluation point
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in (2, 4, 5)]
    for step, model in ((0, parts / "model"), (2, run / "checkpoint-2")):
        content = json.loads((run / f"evaluations/step-{step:08d}-tasks.json").read_text())
        # the two x axes of dynamics.jsonl, so that readers can join them
        assert (content["step"], content["samples_seen"], content["model"]) == (step, 4 * step, str(model))
        assert [row["task"] for row in content["scores"]] == ["own"] * 3
        items = (run / f"evaluations/step-{step:08d}-tasks.items.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in items] == ["q0", "q1", "q2", "q3", "written"]
    assert [entry for entry in told.scored if entry[1] == "own"] == [(step, "own") for step in (0, 2, 4, 5)]
    # held-out loss is scored at the same points and can be compared sample by sample
    heldout = (run / "evaluations/step-00000004-heldout.items.jsonl").read_text().splitlines()
    assert [json.loads(line)["metric"] for line in heldout] == ["loss"] * 3
    assert len(dynamics(run)) == STEPS
    assert list((run / "evaluations").glob(".*")) == []  # nothing is left of the answers on the way


# 20 samples in steps of 4: a multiple of 10 is passed in steps 3 (12 of 8) and 5 (20 of 16)
def test_samples_between_evaluation_points(recipe: Recipe, tmp_path: Path) -> None:
    start(recipe(eval_steps=None, eval_samples=10))
    assert scored_steps(tmp_path / "run") == [0, 3, 5]


def test_no_interval_means_before_and_after(recipe: Recipe, tmp_path: Path) -> None:
    values = recipe(eval_steps=None) | {"eval_samples": None}
    start(values)
    assert scored_steps(tmp_path / "run") == [0, 5]


def test_the_same_command_scores_nothing_twice_and_other_tasks_beside_it(
    recipe: Recipe, tmp_path: Path, parts: Path
) -> None:
    start(recipe())
    run = tmp_path / "run"
    first = {path.name: path.read_bytes() for path in (run / "evaluations").iterdir()}
    assert start(recipe()).scored == []
    told = start(recipe(eval_limit=2))  # allowed: no weight depends on it
    assert any("eval_limit was None, is now 2" in text for text in told.messages)
    now = {path.name: path.read_bytes() for path in (run / "evaluations").iterdir()}
    assert first.items() <= now.items()
    more = sorted(name for name in now.keys() - first.keys() if name.endswith("s.json") or "-tasks-" in name)
    assert len(more) == 2 * 4  # scores and items of four models, named by their suite


def test_what_a_reader_of_the_scores_must_know_is_told_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    score_step = evaluation.score_step

    def scored(*arguments: Any) -> Evaluation:
        found = score_step(*arguments)
        found.notes.append("3 prompts were cut")
        found.excluded += [{"task": "own", "id": f"q{n}", "reason": "too long"} for n in (8, 9)]
        return found

    monkeypatch.setattr(evaluation, "score_step", scored)
    told = start(recipe())
    assert told.messages.count("3 prompts were cut") == 1
    assert told.messages.count("2 questions of own are not scored: too long") == 1


def fail_at(steps: set[int], error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    score_step = evaluation.score_step

    def scored(run: Path, step: int, *rest: Any) -> Evaluation:
        if step in steps:
            raise error
        return score_step(run, step, *rest)

    monkeypatch.setattr(evaluation, "score_step", scored)


def test_a_failing_evaluation_costs_no_training_and_is_made_up_for(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_at({2, 5}, ZeroDivisionError("a task\nis broken"), patch)
        told = start(recipe())
    assert scored_steps(run) == [0, 4]
    assert len(dynamics(run)) == STEPS
    said = [text for text in told.messages if text.startswith("evaluation at step 2 failed: a task is broken;")]
    assert len(said) == 1
    assert "sengi eval" in said[0]
    # the end says so again, with every cause, for people and for programs
    assert told.messages[-1].startswith("2 evaluations failed (step 2: a task is broken; step 5: a task is broken)")
    assert status(run)["state"] == "finished"
    assert status(run)["evaluations_failed"] == {"2": "a task is broken", "5": "a task is broken"}
    # the same command tries what lies on disk
    told = start(recipe())
    assert scored_steps(run) == [0, 2, 4, 5]
    assert "evaluations_failed" not in status(run)
    assert status(run)["reason"] == ""


@pytest.mark.parametrize(
    ("error", "at"),
    [(InputError("a judge is missing"), 0), (StorageError("disk full"), 2), (StoppedByRequest("stopped"), 2)],
    ids=["the base model", "the disk", "a request"],
)
def test_three_failures_end_the_run(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, at: int
) -> None:
    fail_at({at}, error, monkeypatch)
    with pytest.raises(type(error), match=str(error)):
        start(recipe())
    assert len(dynamics(tmp_path / "run") if at else []) == at
    monkeypatch.undo()
    start(recipe())  # nothing is lost
    assert scored_steps(tmp_path / "run") == [0, 2, 4, 5]


# A signal during an evaluation stops at once: the checkpoint was saved before it began.
def test_a_request_to_stop_does_not_wait_for_the_evaluation(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_step = evaluation.score_step

    def scored(run: Path, step: int, *rest: Any) -> Evaluation:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return score_step(run, step, *rest)

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "score_step", scored)
        with pytest.raises(StoppedByRequest, match="stopped by SIGTERM"):
            start(recipe())
    assert time.monotonic() - began < 50
    assert status(tmp_path / "run")["state"] == "stopped"
    told = start(recipe())
    assert any("continuing after step 2" in text for text in told.messages)
    assert [step for step, task in told.scored if task == "own"] == [2, 4, 5]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_tasks": ["questions:/nowhere/q.jsonl"]}, "eval_tasks .*/nowhere/q.jsonl.*does not exist"),
        ({"eval_tasks": ["question:x.jsonl"]}, "eval_tasks .*question:x.jsonl"),
        ({"eval_tasks": ["mt_bench"]}, "eval_tasks: mt_bench needs a judge.*sengi eval"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_made(
    recipe: Recipe, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        start(recipe(**changes))
    assert not (tmp_path / "run").exists()


def test_the_plan_refuses_it_too(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(eval_tasks=["questions:/nowhere/q.jsonl"])))
    assert command(["plan", str(tmp_path / "recipe.yaml")]) == 2
    assert "/nowhere/q.jsonl" in capsys.readouterr().err


def alive(marker: str) -> list[int]:
    """Second processes of the run that was started with ``marker`` in its environment."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if b"sengi.train.score_step" in (process / "cmdline").read_bytes():
                found += [int(process.name)] if marker.encode() in (process / "environ").read_bytes() else []
        except (OSError, ValueError):
            continue
    return found


# A second process: kill -9 of the run takes it along, and the next start scores what was left. The scores and the
# training are those of a run that scores by itself.
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_second_process_dies_and_continues_with_the_run_and_finds_the_same(recipe: Recipe, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "run"
    twice = {"eval_steps": 4, "save_total_limit": 1}
    start(recipe(output_dir=str(one), **twice))
    values = recipe(eval_process="second", **twice)
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    with Path(os.devnull).open("w") as nowhere:
        process = warm.start(
            ["-m", "sengi", "train", str(tmp_path / "recipe.yaml")],
            env={**os.environ, "SENGI_TEST_MARKER": str(tmp_path)},
            stdout=nowhere,
            stderr=nowhere,
        )
    deadline = time.monotonic() + 120
    while not alive(str(tmp_path)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    while alive(str(tmp_path)):
        assert time.monotonic() < deadline, "the second process outlived the run"
        time.sleep(0.01)
    told = start(values)
    assert [step for step, task in told.scored if task == "own"] == [0, 4, 5]
    assert scored_steps(two) == [0, 4, 5]
    assert list((two / "evaluations").glob(".*")) == []
    assert dynamics(two) == dynamics(one)
    assert state(two / "checkpoint-5") == state(one / "checkpoint-5")
    for step in (0, 4, 5):
        first, second = (
            json.loads((run / f"evaluations/step-{step:08d}-tasks.json").read_text()) for run in (one, two)
        )
        assert first["scores"] == second["scores"]
        assert first["samples_seen"] == second["samples_seen"]
    # the limit holds at the end, though checkpoint 4 had to wait for its scores
    assert [path.name for path in two.glob("checkpoint-*")] == ["checkpoint-5"]


@pytest.fixture
def benchmark(parts: Path) -> dict[str, Any]:
    """Recipe keys of an lm-eval task whose questions lie in a local file."""
    pytest.importorskip("lm_eval", reason="needs the extra eval")
    root = parts / "benchmarks"
    root.mkdir(exist_ok=True)
    rows = [
        {"query": f"Question: What is {n} plus 1?", "choices": [str(n + k) for k in range(3)], "gold": 1}
        for n in range(12)
    ]
    (root / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"eval_tasks": ["arc_easy"], "eval_data_root": str(root), "eval_num_fewshot": 0}


# lm-eval seeds every generator of the process: the training must not notice. An evaluation that was stopped half-way
# goes on where it was: no answer is computed twice.
def test_a_benchmark_that_was_interrupted_continues(
    recipe: Recipe, benchmark: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sengi.inference.loglikelihood import Scorer

    score = Scorer.score
    computed: list[int] = []
    stop_after = 0

    def counted(self: Scorer, requests: Any, *, batch_tokens: int = 4096, on_scored: Any = None) -> Any:
        def note(indices: list[int], results: list[Any]) -> None:
            on_scored(indices, results)
            computed.extend(indices)
            if stop_after and len(computed) >= stop_after:
                raise StoppedByRequest("stopped by a test")

        return score(self, requests, batch_tokens=64, on_scored=note)

    monkeypatch.setattr(Scorer, "score", counted)
    without, run = tmp_path / "without", tmp_path / "run"
    start(recipe(output_dir=str(without), eval_tasks=None))
    values = recipe(**benchmark, eval_steps=4)
    stop_after = 36 + 10  # the base's 12 questions of 3 choices, and a part of step 4's
    with pytest.raises(StoppedByRequest):
        start(values)
    first, stop_after = len(computed), 0
    assert 36 < first < 72
    start(values)
    assert len(computed) == 3 * 36
    assert scored_steps(run) == [0, 4, 5]
    assert dynamics(run) == dynamics(without)
    assert state(run / "checkpoint-5") == state(without / "checkpoint-5")
    assert list((run / "evaluations").glob(".*")) == []
    items = (run / "evaluations/step-00000004-tasks.items.jsonl").read_text().splitlines()
    assert len(items) == 12 * 2  # acc and acc_norm


def test_an_unknown_benchmark_is_refused_with_the_nearest_name(
    recipe: Recipe, benchmark: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"eval_tasks.*arc_eazy.*arc_easy"):
        start(recipe(**benchmark | {"eval_tasks": ["arc_eazy"]}))
    with pytest.raises(RecipeError, match="winogrande"):
        start(recipe(**benchmark | {"eval_tasks": ["winogrande"]}))  # its file is not in the folder
    assert not (tmp_path / "run").exists()
