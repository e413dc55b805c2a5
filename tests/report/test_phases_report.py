"""A phased run in its report: the table of phases, the borders and the chosen checkpoints in the curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_run import HEARTBEAT, step_record, write_lines, write_run
from html_reader import Page

from sengi.report.charts import chart_json
from sengi.report.contents import build_report
from sengi.report.figures import draw_figures
from sengi.report.markdown import render_markdown
from sengi.report.page import render_page
from sengi.report.phases import border_marks, chosen_marks, phase_table
from sengi.report.run_folder import read_run


def planned(name: str, first: int, last: int, replayed: int) -> dict:
    numbers = {"own_samples": 3_800, "replayed_samples": replayed, "epoch_samples": 3_800 + replayed, "samples": 3_840}
    numbers |= {"num_train_epochs": 1, "effective_batch_size": 64, "learning_rate": 2e-5, "warmup_steps": 0}
    return {"name": name, "lr_scheduler_type": "constant", "first_step": first, "last_step": last, **numbers}


def ended(name: str, chosen: int, last: int, score: float, path: int) -> dict:
    numbers = {"chosen_step": chosen, "chosen_score": score, "last_step": last, "samples_seen": 64 * last}
    return {"phase": name, "candidates": [], "samples_up_to_chosen": path, **numbers}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two phases of 60 steps; of the first one, step 40 was chosen."""
    recipe = {"strategy": "phased", "phases": {"by": "phase", "select": "heldout_loss", "optimizer": "fresh"}}
    phases = [planned("facts", 1, 60, 0), planned("<skills>", 61, 120, 40)]
    folder = write_run(tmp_path / "run", recipe=recipe, plan={"phases": phases})
    records = [step_record(k) | {"phase": "facts" if k <= 60 else "<skills>"} for k in range(1, 121)]
    write_lines(folder / "dynamics.jsonl", records)
    first, second = ended("facts", 40, 60, 1.25, 2_560), ended("<skills>", 120, 120, 0.62, 6_400)
    (folder / "phases.json").write_text(json.dumps({"optimizer": "fresh", "phases": [first, second]}))
    return folder


def test_one_table_of_phases(run: Path) -> None:
    rows = [row.cells for row in phase_table(read_run(run)).rows]
    assert rows == [
        ("facts", "3,800", "0", "1", "64", "2e−5", "1 to 60", "40", "1.250", "3,840", "2,560"),
        ("<skills>", "3,840", "40", "1", "64", "2e−5", "61 to 120", "120", "0.620", "7,680", "6,400"),
    ]
    page = Page(render_page(build_report(run, HEARTBEAT + 60)))
    assert page.table("phase", "samples an epoch")["<skills>"][6:] == ["120", "0.620", "7,680", "6,400"]
    assert "&lt;skills&gt; | 3,840" in render_markdown(build_report(run, HEARTBEAT + 60), [])


def test_borders_and_chosen_checkpoints_lie_on_every_axis(run: Path) -> None:
    border, chosen = border_marks(read_run(run)), chosen_marks(read_run(run))
    assert border.names == ["phase <skills> begins"]
    assert (border.axes["step"], border.axes["samples"]) == ([60], [3_840])
    assert chosen.axes["step"].tolist() == [40, 120]
    assert chosen.axes["time"].tolist() == [100, 300]
    np.testing.assert_allclose(chosen.values, [step_record(40)["loss"], step_record(120)["loss"]])
    text = chart_json(read_run(run))
    assert text is not None
    assert '"source-phases"' in text
    assert "star: the checkpoint chosen in it" in text
    assert draw_figures(build_report(run, HEARTBEAT + 60)).keys() >= {"loss.png", "grad_norm.png"}


# A run that has only begun, or whose phases.json is torn, says what it knows.
def test_a_young_or_broken_run(run: Path) -> None:
    (run / "phases.json").write_text("{")
    records = [step_record(k) | {"phase": "facts"} for k in range(1, 11)]
    write_lines(run / "dynamics.jsonl", records)
    young = read_run(run)
    assert [row.cells[7:] for row in phase_table(young).rows] == [("–", "–", "–", "–")] * 2
    assert (border_marks(young).names, chosen_marks(young).names) == ([], [])
    assert any("phases.json cannot be read" in line for line in young.repairs)


def test_a_stacked_run_has_no_such_table(tmp_path: Path) -> None:
    stacked = read_run(write_run(tmp_path / "run"))
    assert phase_table(stacked).rows == ()
    assert "source-phases" not in (chart_json(stacked) or "")
