"""The command itself: help is quick and names the verbs, every wrong word is one line with the nearest right one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sengi.cli import app as app_module
from sengi.cli.app import run


def test_help_names_every_verb_and_the_path_of_a_first_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in ("train", "plan", "eval", "report", "chat", "env", "data", "recipe"):
        assert verb in text
    assert "sengi data check" in text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian", "r.yaml"], 'Did you mean "train"?'),
        (["train", "r.yaml", "--sett", "x=1"], "Did you mean --set?"),
        (["train"], "requires an argument"),
        (["data", "tokens", "x.jsonl"], "--model"),
    ],
)
def test_wrong_words_are_one_line_and_exit_with_2(words: list[str], hint: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "sengi", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert hint in done.stderr


def test_what_nobody_foresaw_is_one_line_with_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(app_module, "app", broken)
    assert run([]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ZeroDivisionError: a b; not foreseen")
    log = Path(error.split(" with ")[1].split(" and ")[0])
    assert "Traceback" in log.read_text()
    log.unlink()


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m sengi recipe schema --json | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
