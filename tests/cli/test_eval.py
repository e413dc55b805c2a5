"""``sengi eval`` as a user meets it."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.harness.local_tasks import keep_small_index
from tests.model.tiny_folder import write_tiny_folder

from sengi.cli.app import run
from sengi.evaluate import checkpoints, suite
from sengi.inference.loglikelihood import LogLikelihood, Request, Scorer

ARC = [{"query": f"Which one is {i}?", "choices": ["a", "b", str(i)], "gold": 2} for i in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("eval") / "tiny")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"question": "Which?", "choices": ["red", "green"], "answer": "red", "topic": "colour", "group": "taught"},
        {"question": "How many?", "answer": "12", "group": "control"},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ARC))
    return tmp_path / "root"


def test_scores_are_printed_and_written_as_lm_eval_writes_them(
    folder: Path, questions: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    words = ["eval", str(folder), "--tasks", f"questions:{questions},arc_easy", "--data-root", str(root)]
    assert run([*words, "--limit", "2", "--output", str(out)]) == 0
    printed = capsys.readouterr()
    for text in ("own", "accuracy", "group=taught", "exact_match", "arc_easy", "95% int"):
        assert text in printed.out
    results = next(out.rglob("results_*.json"))
    assert f"written: {results}" in printed.err
    document = json.loads(results.read_text())
    assert document["config"]["limit"] == 2
    assert {"own", "arc_easy"} <= document["results"].keys()
    assert run(["compare", str(out), str(out)]) == 0
    assert "arc_easy" in capsys.readouterr().out


def test_nothing_is_left_of_a_finished_evaluation(folder: Path, root: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SENGI_CACHE", str(tmp_path / "cache"))
    keep_small_index()
    words = ["eval", str(folder), "--tasks", "arc_easy", "--data-root", str(root), "--limit", "1"]
    assert run(words) == 0
    assert not list((tmp_path / "cache/evaluations").iterdir())


# Hours of scoring must not end in "no such score".
def test_a_choice_by_a_task_that_is_not_asked_is_refused_before_scoring(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoints, "evaluate_run", lambda *_, **__: pytest.fail("scored"))
    (tmp_path / "recipe.yaml").write_text("{}")
    words = ["eval", str(tmp_path), "--tasks", f"questions:{questions}"]
    assert run([*words, "--select", "onw/accuracy"]) == 2
    assert "--select onw/accuracy: onw is not among --tasks; there is own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "mmlu_anatomi"], "mmlu_anatomy"),
        (["--tasks", "arc_easy", "--select", "arc_easy/acc"], "is not a run folder"),
        (["--tasks", "mt_bench"], "--judge-url"),
        (["--tasks", "arc_easy", "--limit", "0"], "--limit 0"),
        (["--tasks", "gsm8k"], "gsm8k/test"),
        (["--tasks", "questions:own.jsonl", "--num-fewshot", "5"], "--num-fewshot 5: only for benchmarks"),
        (["--tasks", "heldout:own.jsonl", "--apply-chat-template"], "--apply-chat-template: only for benchmarks"),
        (["--tasks", "arc_easy", "--judge-repeat", "0.5"], "--judge-repeat 0.5: only for mt_bench"),
    ],
)
def test_bad_requests_are_one_line_with_exit_code_2(
    words: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "no-such-model", *words, "--data-root", str(root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# Out of memory after hours: with a smaller --batch-tokens the answers so far are not asked again.
def test_an_interrupted_evaluation_goes_on_also_with_other_batches(
    folder: Path, root: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_small_index()
    asked: list[int] = []
    score = Scorer.score

    def noted(scorer: Scorer, requests: Sequence[Request], **options: Any) -> list[LogLikelihood]:
        asked.append(len(requests))
        if len(asked) == 1:  # the first half is answered, then the memory is full
            score(scorer, requests[: len(requests) // 2], **options)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(scorer, requests, **options)

    monkeypatch.setattr(Scorer, "score", noted)
    words = ["eval", str(folder), "--tasks", "arc_easy", "--data-root", str(root)]
    assert run(words) == 1
    assert "out of memory" in capsys.readouterr().err
    assert run([*words, "--batch-tokens", "64"]) == 0
    assert asked == [9, 5]
    assert "arc_easy" in capsys.readouterr().out


def test_an_output_that_cannot_be_is_said_before_anything_is_scored(
    folder: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "evaluate", lambda *_, **__: pytest.fail("something was scored"))
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    words = ["eval", str(folder), "--tasks", f"questions:{questions}", "--output"]
    assert run([*words, str(tmp_path / "file")]) == 2
    assert f"--output {tmp_path / 'file'}: cannot be written (File exists)" in capsys.readouterr().err

    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert run([*words, str(tmp_path / "full")]) == 2
    assert "(No space left on device); free space or name another folder" in capsys.readouterr().err
