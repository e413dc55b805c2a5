"""What ``sengi eval RUN`` prints: every whole score, what the best checkpoint is chosen by, and where the rest lies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sengi.cli.eval_display import print_run, print_scores
from sengi.evaluate.checkpoints import RunEvaluation
from sengi.evaluate.run_evaluations import Point
from sengi.evaluate.run_scores import ScoreLine, by_task, score_line
from sengi.evaluation import Evaluation

STEPS = {0: 0.1, 10: 0.4, 20: 0.75}  # share of 40 questions that are right


def line(task: str, metric: str, group: str = "all") -> ScoreLine:
    points = [Point(step, 8 * step, share, share - 0.1, share + 0.1, 40, True) for step, share in STEPS.items()]
    column, _, value = group.partition("=")
    items = {
        step: by_task(
            [
                {"task": task, "id": str(k), "metric": metric, "correct": int(k < share * 40), column: value}
                for k in range(40)
            ]
        )
        for step, share in STEPS.items()
    }
    return score_line(task, metric, group, points, items, {})


def printed(capsys: pytest.CaptureFixture[str], lines: list[ScoreLine], selected: int = 0, **more: object) -> str:
    print_run(RunEvaluation(Path("runs/one"), list(STEPS), lines, lines[selected], **more))  # type: ignore[arg-type]
    return " ".join(re.sub("[\u2500-\u257f]", " ", capsys.readouterr().out).split())  # without the tables' lines


def test_a_score_is_a_table_with_its_best_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, [line("own", "accuracy")])
    assert "base 0 10.0% 0.0% to 20.0% 40 10 80 40.0% 30.0% to 50.0% 40 20 160 75.0% 65.0% to 85.0% 40" in text
    assert "best checkpoint: step 20," in text
    assert "peak at step 20 after 160 samples, 75.0%" in text
    assert text.endswith("chosen by own/accuracy: step 20")


def test_what_was_chosen_by_is_always_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line("own", "accuracy"), *(line("own", "accuracy", f"group={name}") for name in ("taught", "control"))]
    text = printed(capsys, lines, selected=1)
    assert text.count("best checkpoint: step 20") == 2  # the whole and the chosen part
    assert "chosen by own/accuracy/group=taught: step 20" in text
    assert "1 scores of parts are not printed (own/accuracy/group=control): all are in runs/one/evaluations" in text


def test_tasks_of_a_group_are_counted_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    subjects = [f"mmlu_{number}" for number in range(8)]
    members = {"mmlu": ["mmlu_stem"], "mmlu_stem": subjects, "ai2_arc": ["arc_easy"]}
    lines = [line(task, "acc") for task in ("mmlu", "mmlu_stem", *subjects, "arc_easy")]
    text = printed(capsys, lines, members=members)
    # A group without a score of its own (ai2_arc) hides nothing.
    assert text.count("samples seen") == 2
    assert "9 scores of parts are not printed (mmlu_stem/acc, mmlu_0/acc, " in text
    assert "mmlu_4/acc, ...)" in text
    assert "mmlu_5" not in text
    assert "mmlu_5/acc: step 20" in printed(capsys, lines, selected=7, members=members)


def test_without_a_checkpoint_nothing_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    base = score_line("own", "accuracy", "all", [Point(0, 0, 0.1, 0.0, 0.2, 40, True)], {}, {})
    assert printed(capsys, [base]).endswith("chosen by own/accuracy: no checkpoint is scored")


def test_own_questions_are_printed_by_topic_with_taught_beside_control(capsys: pytest.CaptureFixture[str]) -> None:
    items = [
        {"task": "own", "metric": "exact_match", "topic": "people", "group": group, "correct": int(n < right)}
        for group, right in (("taught", 9), ("control", 1))
        for n in range(10)
    ]
    print_scores(Evaluation(items=items), "tiny")
    printed = capsys.readouterr().out
    assert "own: exact_match by topic" in printed
    [row] = [line for line in printed.splitlines() if "people" in line]
    assert row.index("90.0%") < row.index("10.0%")
