"""``sengi eval`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.model.tiny_folder import write_tiny_folder

from sengi.cli.app import run

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
    words = ["eval", str(folder), "--tasks", "arc_easy", "--data-root", str(root), "--limit", "1"]
    assert run(words) == 0
    assert not list((tmp_path / "cache/evaluations").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "mmlu_anatomi"], "mmlu_anatomy"),
        (["--tasks", "arc_easy", "--select", "arc_easy/acc"], "is not a run folder"),
        (["--tasks", "mt_bench"], "--judge-url"),
        (["--tasks", "arc_easy", "--limit", "0"], "--limit 0"),
        (["--tasks", "gsm8k"], "gsm8k/test"),
    ],
)
def test_bad_requests_are_one_line_with_exit_code_2(
    words: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "no-such-model", *words, "--data-root", str(root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
