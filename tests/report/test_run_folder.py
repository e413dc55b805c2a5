from __future__ import annotations

import json
import math

import pytest
from fake_run import step_record, write_lines

from sengi.errors import InputError
from sengi.report.run_folder import read_run


def test_a_whole_run_is_read_without_a_complaint(run_folder):
    run = read_run(run_folder)
    assert run.missing == []
    assert run.repairs == []
    assert run.recipe["learning_rate"] == 2e-5
    assert run.steps == 120
    assert run.dynamics["loss"][49] == step_record(50)["loss"]
    assert run.phases == ["stacked"] * 120
    assert [e.step for e in run.evaluations] == [0, 60, 120]
    assert len(run.evaluations[0].items) == 40
    assert run.checkpoints == [60, 120]


def test_a_torn_last_line_is_left_out_and_named(run_folder):
    # A killed process leaves half a line; everything before it counts.
    file = run_folder / "dynamics.jsonl"
    file.write_text(file.read_text()[:-30])
    run = read_run(run_folder)
    assert run.steps == 119
    assert run.repairs == ["dynamics.jsonl: the last line was cut while it was written and is left out"]


def test_broken_lines_inside_are_counted_with_their_numbers(run_folder):
    file = run_folder / "dynamics.jsonl"
    lines = file.read_text().splitlines()
    lines[3], lines[7] = "{broken", "[1, 2]"
    file.write_text("\n".join(lines) + "\n")
    run = read_run(run_folder)
    assert run.steps == 118
    assert run.repairs == ["dynamics.jsonl: 2 unreadable lines left out (line 4, 8)"]


def test_a_step_written_twice_counts_once_the_later_time(run_folder):
    again = step_record(10) | {"loss": 77.0}
    records = [step_record(k) for k in range(1, 13)] + [again, {"loss": 1.0}]
    write_lines(run_folder / "dynamics.jsonl", records)
    run = read_run(run_folder)
    assert list(run.dynamics["step"]) == list(range(1, 13))
    assert run.dynamics["loss"][9] == 77.0
    assert "1 steps are written twice" in run.repairs[0]
    assert "1 records without a step" in run.repairs[1]


def test_missing_values_and_other_kinds_become_nan_and_unknown_keys_pass(run_folder):
    record = {"step": 1, "loss": None, "grad_norm": "high", "mfu": True, "learning_rate": 10**400, "new_key": {}}
    write_lines(run_folder / "dynamics.jsonl", [record])
    run = read_run(run_folder)
    assert all(math.isnan(run.dynamics[key][0]) for key in ("loss", "grad_norm", "mfu", "learning_rate", "epoch"))


def test_several_files_of_one_step_are_one_evaluation(run_folder):
    extra = {"scores": [{"task": "choice", "metric": "accuracy", "group": "all", "value": 0.25, "n": 8}]}
    (run_folder / "evaluations/step-00000000-questions.json").write_text(json.dumps(extra))
    run = read_run(run_folder)
    assert [e.step for e in run.evaluations] == [0, 60, 120]
    added = next(s for s in run.evaluations[0].scores if s.task == "choice")
    assert (added.value, added.n) == (0.25, 8)
    assert math.isnan(added.low)


@pytest.mark.parametrize("name", ["recipe.yaml", "plan.json", "environment.json", "status.json", "dynamics.jsonl"])
def test_each_missing_file_is_named(run_folder, name):
    (run_folder / name).unlink()
    missing = read_run(run_folder).missing
    assert len(missing) == 1
    assert missing[0].startswith(f"{name}: ")


@pytest.mark.parametrize("content", ["{", "[1]", "- a", "\x00", "!!python/object:os.system {}", "[" * 20_000])
def test_files_that_cannot_be_read_are_left_out_and_named(run_folder, content):
    for name in ("recipe.yaml", "plan.json", "evaluations/step-00000000.json"):
        (run_folder / name).write_text(content)
    run = read_run(run_folder)
    assert run.recipe == run.plan == {}
    assert {line.split()[0] for line in run.repairs} >= {"recipe.yaml", "plan.json"}
    assert all("\n" not in line for line in run.repairs)


def test_no_run_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such run folder; give the folder named as output_dir"):
        read_run(tmp_path / "nothing")
    with pytest.raises(InputError, match="not a run folder"):
        read_run(tmp_path)
