"""What the terminal shows of phases and epochs: one display for all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.train.phases.phased_run import Recipe, records

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
