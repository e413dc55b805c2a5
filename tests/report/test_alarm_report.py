from __future__ import annotations

import json

import numpy as np
import pytest
from fake_run import HOSTILE, RECIPE, step_record, write_lines, write_run

from sengi.report.alarms import alarm_marks, alarms_of, suggestions_of
from sengi.report.contents import build_report
from sengi.report.markdown import render_markdown
from sengi.report.page import render_page
from sengi.report.run_folder import read_run
from sengi.train.alarms import find_alarms


def diverging_run(folder):
    """The loss climbs from step 60 on."""
    write_run(folder)
    records = [step_record(k) for k in range(1, 121)]
    for record in records[60:]:
        record["loss"] += 0.2 * (record["step"] - 60)
    write_lines(folder / "dynamics.jsonl", records)
    return records


def test_a_healthy_run_has_no_alarms_and_no_section(run_folder):
    report = build_report(run_folder, 0.0)
    assert report.alarms.rows == ()
    assert 'id="alarms"' not in render_page(report)
    assert "## Alarms" not in render_markdown(report, [])


def test_alarms_are_found_again_and_shown(tmp_path):
    records = diverging_run(tmp_path / "run")
    report = build_report(tmp_path / "run", 0.0)
    found = alarms_of(report.run)
    # the same as the run itself saw
    assert found == find_alarms(records, 120)
    assert [alarm.kind for alarm in found] == ["diverging"]
    (row,) = report.alarms.rows
    assert row.cells[:2] == (str(found[0].step), "diverging")
    assert found[0].sentence in report.verdict.warnings
    page = render_page(report)
    assert '<section id="alarms">' in page
    assert "source-alarms" in page
    assert "## Alarms" in render_markdown(report, [])
    marks = alarm_marks(report.run)
    assert marks.axes["samples"].tolist() == [64.0 * found[0].step]
    assert marks.values == pytest.approx(records[found[0].step - 1]["loss"])


def test_a_stop_by_an_alarm_is_said_once(tmp_path):
    records = diverging_run(tmp_path / "run")
    (alarm,) = find_alarms(records, 120)
    write_lines(tmp_path / "run/dynamics.jsonl", records[: alarm.step])
    status = {"state": "stopped", "reason": f"stopped by an alarm: {alarm.sentence}", "step": alarm.step}
    (tmp_path / "run/status.json").write_text(json.dumps(status))
    verdict = build_report(tmp_path / "run", 0.0).verdict
    assert alarm.seen in verdict.progress
    assert not any(alarm.seen in line for line in verdict.warnings)


def test_a_loss_that_was_not_finite_is_an_alarm_of_its_own(tmp_path):
    alarm = {"step": 121, "kind": "not finite", "seen": "loss is nan", "cause": "no update was made", "cure": "look"}
    folder = write_run(tmp_path / "run", status={"state": "failed", "reason": "step 121: loss is nan", "alarm": alarm})
    report = build_report(folder, 0.0)
    assert report.alarms.rows[0].cells == ("121", "not finite", "loss is nan", "no update was made", "look")
    assert alarm_marks(report.run).names == []


@pytest.mark.parametrize("alarm", [HOSTILE, {"kind": "not finite"}, {"kind": "not finite", "step": HOSTILE}, 3, [1]])
def test_a_status_of_another_kind_is_no_alarm(tmp_path, alarm):
    folder = write_run(tmp_path / "run", status={"alarm": alarm})
    assert alarms_of(read_run(folder)) == []


def test_hostile_words_stay_words(tmp_path):
    alarm = {"step": 121, "kind": "not finite", "seen": HOSTILE, "cause": HOSTILE, "cure": HOSTILE}
    folder = write_run(tmp_path / "run", status={"state": "failed", "reason": "nan", "alarm": alarm})
    assert HOSTILE not in render_page(build_report(folder, 0.0))


def test_what_the_evidence_would_change_is_pointed_out(tmp_path):
    phase = {
        "name": "stacked",
        "effective_batch_size": 64,
        "num_train_epochs": 3,
        "samples": 7_680,
        "epoch_samples": 2_560,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "first_step": 1,
        "last_step": 120,
    }
    recipe = {**RECIPE, "eval_questions": ["q.jsonl"]}
    folder = write_run(tmp_path / "run", recipe=recipe, plan={"phases": [phase], "parameters": 135e6})
    run = read_run(folder)
    assert [line.key for line in suggestions_of(run)] == ["effective_batch_size"]
    assert any(
        "effective_batch_size 64 → 8: 120 optimizer steps in all" in line
        for line in build_report(folder, 0.0).verdict.warnings
    )
    # a recipe that cannot be read has none
    run.recipe["learning_rate"] = "fast"
    assert suggestions_of(run) == []


def test_marks_follow_the_steps_that_are_there(tmp_path):
    records = diverging_run(tmp_path / "run")
    (alarm,) = find_alarms(records, 120)
    marks = alarm_marks(read_run(tmp_path / "run"))
    np.testing.assert_array_equal(marks.axes["step"], [alarm.step])
