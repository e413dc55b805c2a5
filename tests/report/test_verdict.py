from __future__ import annotations

import pytest
from fake_run import HEARTBEAT, answers, step_record, write_lines, write_run

from sengi.report.run_folder import read_run
from sengi.report.scores import compare_scores
from sengi.report.verdict import judge_run


def verdict_of(folder, now=HEARTBEAT + 60):
    run = read_run(folder)
    return judge_run(run, compare_scores(run), now)


def test_a_finished_run_says_what_it_did(run_folder):
    verdict = verdict_of(run_folder)
    assert verdict.state == "finished"
    assert verdict.progress == "Finished at step 120 of 120."
    assert verdict.outcome == (
        "Held-out loss: 3.010 → 0.620 (better).",
        "Exact match on answer (taught): 3.3% → 90.0%, +86.7 pp (better).",
        "Exact match on answer (control): 10.0% → 10.0%, +0.0 pp (no clear change).",
    )
    assert verdict.warnings == ()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("stopped", "Stopped at step 37 of 120: SIGTERM. The same command continues the run."),
        ("failed", "Failed at step 37 of 120: SIGTERM."),
        ("running", "Running, at step 37 of 120 when this page was written; last sign of life 1 min before."),
    ],
)
def test_other_states_name_step_and_reason(tmp_path, state, words):
    folder = write_run(tmp_path / "run", status={"state": state, "reason": "SIGTERM"})
    write_lines(folder / "dynamics.jsonl", [step_record(k) for k in range(1, 38)])
    verdict = verdict_of(folder)
    assert (verdict.state, verdict.progress) == (state, words)


def test_a_running_run_without_heartbeat_is_called_silent(tmp_path):
    # The process may be gone: a page must not say "running" of it for ever.
    folder = write_run(tmp_path / "run", status={"state": "running"})
    verdict = verdict_of(folder, now=HEARTBEAT + 7200)
    assert verdict.state == "silent"
    assert "without a sign of life for 2 h" in verdict.progress


def test_no_status_is_unknown(run_folder):
    (run_folder / "status.json").unlink()
    verdict = verdict_of(run_folder)
    assert verdict.state == "unknown"
    assert "records end at step 120 of 120" in verdict.progress


def test_non_finite_steps_are_named(run_folder):
    records = [step_record(k) for k in range(1, 121)]
    records[4]["loss"], records[8]["grad_norm"] = float("nan"), None
    write_lines(run_folder / "dynamics.jsonl", records)
    assert verdict_of(run_folder).warnings == ("Loss or gradient norm is not a finite number at 2 steps (5, 9).",)


def test_warnings_of_the_plan_are_repeated(tmp_path):
    folder = write_run(tmp_path / "run", plan={"warnings": ["the last step is short"]})
    assert verdict_of(folder).warnings == ("the last step is short",)


def test_controls_that_improve_are_a_warning(run_folder):
    write_lines(run_folder / "evaluations/step-00000120.items.jsonl", answers(27, 9))
    assert "Control questions of answer improved" in verdict_of(run_folder).warnings[0]
