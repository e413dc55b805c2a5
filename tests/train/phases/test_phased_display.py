"""What the terminal shows of phases and epochs: one display for all of them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from tests.train.phases.phased_run import Recipe, records

from sengi.cli import train_display
from sengi.cli.app import run


def test_each_step_tells_its_phase_and_epoch(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe(num_train_epochs=2)))
    assert run(["train", str(path)]) == 0
    told = capsys.readouterr().err
    found = re.findall(r"^step (\d+)/(\d+)  (\S+) \((\d)/2\), epoch (\d)/2  loss .* left$", told, re.MULTILINE)
    first, last = (record["last_step"] for record in records(tmp_path / "run"))
    assert [int(step) for step, *_ in found] == list(range(1, last + 1))
    assert {int(steps) for _, steps, *_ in found} == {last}
    # both phases begin with their first epoch
    phases = [(name, number, int(epoch)) for _, _, name, number, epoch in found]
    assert list(dict.fromkeys(phases)) == [
        (name, number, epoch) for name, number in (("facts", "1"), ("skills", "2")) for epoch in (1, 2)
    ]
    assert [number for _, number, _ in phases].count("1") == first
    assert "saved " in told
    assert "heldout loss" in told


# In a terminal all of it stands on one bar: where the run is, its numbers, and the newest checkpoint.
def test_one_bar_for_phases_epochs_and_checkpoints(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(train_display, "err", Console(file=screen, force_terminal=True, width=200, color_system=None))
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe(num_train_epochs=2)))
    assert run(["train", str(path)]) == 0
    drawn = [re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", screen.getvalue())]
    bars = [line for line in drawn if re.match(r"(facts \(1|skills \(2)/2\), epoch \d/2 .* \d+% +loss ", line)]
    assert bars[-1].startswith("skills (2/2), epoch 2/2")
    assert "100%" in bars[-1]
    assert any(re.search(r" left +checkpoint-\d+", line) for line in bars)
