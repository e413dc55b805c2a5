"""``sengi compare``: the table, the files, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sengi.cli.app import run
from sengi.cli.compare import print_comparison
from sengi.evaluate.compare import Row, compare
from sengi.evaluate.saved_samples import load_samples

TIME = "2026-01-02T03-04-05.678901"


def write(folder: Path, task: str, right: list[int], prompt: str = "p", metric: str = "acc") -> str:
    """A folder with one task as lm-eval saves it."""
    rows = [
        {"doc_id": k, "filter": "none", "metrics": [metric], metric: value}
        | {"doc_hash": f"d{k}", "target_hash": "t", "prompt_hash": prompt}
        for k, value in enumerate(right)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"samples_{task}_{TIME}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    right, better = [1] * 40 + [0] * 60, [1] * 39 + [0] + [1] * 30 + [0] * 30
    for name, rows in (("a", right), ("b", better)):
        write(tmp_path / name, "arc_easy", rows)
        write(tmp_path / name, "law [v2]", right)  # brackets must not be read as markup
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_the_table_names_the_better_one_with_interval_and_both_p(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *two]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A  {two[0]}"
    assert lines[1] == f"B  {two[1]}"
    (first,) = [number for number, line in enumerate(lines) if "arc_easy" in line]
    # 40 to 69 of 100: 30 gained, 1 lost; two rows, so Holm doubles p.
    for word in ("100", "A 40.0%", "+29.0 pp", "< 0.0001", "B better"):
        assert word in lines[first]
    for word in ("acc", "B 69.0%", "+20.2 to +38.8"):
        assert word in lines[first + 1]
    (law,) = [line for line in lines if "law [v2]" in line]
    assert "no difference" in law
    assert max(map(len, lines)) <= 80  # a terminal of 80 columns cuts nothing
    assert "corrected by Holm" in " ".join(lines)


def test_output_holds_every_number(two: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    assert run(["compare", *two, "--output", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["evaluations"] == {"A": two[0], "B": two[1]}
    arc, law = document["rows"]
    assert (arc["task"], arc["n"], arc["gained"], arc["lost"], arc["test"]) == ("arc_easy", 100, 30, 1, "mcnemar")
    assert arc["difference"] == pytest.approx(0.29)
    assert arc["low"] < arc["bootstrap_high"] < 0.5
    assert arc["p_holm"] == pytest.approx(2 * arc["p"])
    assert arc["verdict"] == "B better"
    # Nothing changed: what could have been detected is not known, which JSON calls null.
    assert (law["difference"], law["detectable"], law["verdict"]) == (0.0, None, "no difference shown")


def test_a_question_left_out_is_counted_once_whatever_its_metrics(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    def row(task: str, metric: str, other: int, left_out: int) -> Row:
        return replace(one, task=task, metric=metric, other=other, left_out=left_out)

    comparison = compare([load_samples(Path(path)) for path in (*two, two[1])])
    one = comparison.rows[0]
    comparison.rows = [row("arc", "acc", 1, 2), row("arc", "acc_norm", 1, 3), row("arc", "acc", 2, 1)]
    comparison.rows.append(row("mmlu", "acc", 1, 4))
    print_comparison(comparison)
    assert "8 questions left out: " in capsys.readouterr().err


def test_three_evaluations_and_a_figure(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "c.png"
    assert run(["compare", *two, two[0], "--figure", str(figure)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "C  " in capsys.readouterr().out


def test_the_baseline_can_be_the_better_one(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *two[::-1]]) == 0
    assert "A better" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "A"], "needs two or more evaluations"),
        (["compare", "A", "nowhere"], "nowhere: no such file or folder"),
        (["compare", "A", "PROMPTS"], "arc_easy: 100 of 100 prompts differ (first ids: 0, 1, 2)"),
        (["compare", "A", "SHORT"], "arc_easy: 50 questions only in the first (first ids: 50, 51, 52)"),
        (["compare", "A", "B", "--figure", "c.gif"], "ends in none of .png, .svg, .pdf"),
        (["compare", "A", "B", "--output", "nowhere/c.json"], "the folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_2(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    places = {"A": two[0], "B": two[1]}
    places["PROMPTS"] = write(tmp_path / "prompts", "arc_easy", [1] * 100, prompt="other")
    places["SHORT"] = write(tmp_path / "short", "arc_easy", [1] * 50)
    assert run([places.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_without_matplotlib_the_message_says_what_to_install(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["compare", *two, "--figure", str(tmp_path / "c.png")]) == 2
    assert "pip install 'sengi[report]'" in capsys.readouterr().err
    assert run(["compare", *two]) == 0  # the table needs none


def test_what_only_one_holds_is_said(two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "b", "gsm8k", [1, 0])
    assert run(["compare", *two]) == 0
    assert f"not compared: only in {two[1]}: gsm8k" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--output", "--figure"])
def test_a_place_that_cannot_be_written_is_said_first(
    two: tuple[str, str],
    tmp_path: Path,
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "old.png").touch()
    assert run(["compare", *two, option, str(tmp_path / "folder.png")]) == 2
    assert run(["compare", *two, option, "/proc/no.png"]) == 2
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert run(["compare", *two, option, str(tmp_path / "old.png")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    errors = printed.err.splitlines()
    for line, words in zip(
        errors, ("a folder; name a file in it", "/proc: cannot be written", "read-only"), strict=True
    ):
        assert line.startswith(f"error: {option} ")
        assert words in line


# What only the writing itself finds out.
def test_a_disk_that_is_full_is_a_storage_error(two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *two, "--output", "/dev/full"]) == 1
    error = capsys.readouterr().err
    assert "error: /dev/full: writing failed: No space left on device" in error
    assert "not foreseen" not in error
