"""Scores over the training: on the axes of the curves, whole tasks only, the best said to be not corrected."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fake_run import score, write_lines

from sengi.report.charts import chart_json
from sengi.report.contents import build_report
from sengi.report.figures import draw_figures
from sengi.report.markdown import render_markdown
from sengi.report.page import render_page
from sengi.report.run_folder import read_run
from sengi.report.scores import compare_scores, group_of_task, pick_examples
from sengi.report.tables import score_tables
from sengi.report.timeline import score_curves, timeline_table
from sengi.report.verdict import judge_run

# MMLU of two subjects, 20 questions each, counted in two ways; right answers by step
RIGHT = {0: (4, 6), 30: (8, 10), 60: (16, 12), 90: (15, 12), 120: (14, 11)}
DATA = "d" * 64


def write_tasks(run: Path, step: int, right: tuple[int, int], data: str = DATA, suffix: str = "") -> None:
    """What a suite of one group leaves at a step."""
    scores, items = [], []
    for metric, extra in (("acc", 0), ("acc_norm", 1)):
        counts = [count + extra for count in right]
        parts = [("mmlu", sum(counts), 40), ("mmlu_law", counts[0], 20), ("mmlu_physics", counts[1], 20)]
        scores += [score(task, metric, "all", n / of, max(0, n / of - 0.1), n / of + 0.1, of) for task, n, of in parts]
        for (task, count, _), part in zip(parts[1:], "lp", strict=True):
            texts = {"prediction": "A", "answer": "B", "question": "?"}
            items += [
                {"task": task, "id": f"{part}{i}", "metric": metric, "correct": int(i < count), **texts}
                for i in range(20)
            ]
    name = f"evaluations/step-{step:08d}-tasks{suffix}"
    content = {"step": step, "samples_seen": 64 * step, "data": data, "scores": scores}
    (run / f"{name}.json").write_text(json.dumps(content))
    write_lines(run / f"{name}.items.jsonl", items)


@pytest.fixture
def scored(run_folder: Path) -> Path:
    """A run of 120 steps with MMLU at five points."""
    for step, right in RIGHT.items():
        write_tasks(run_folder, step, right)
    return run_folder


def test_a_score_lies_at_its_step_on_every_axis(scored: Path) -> None:
    acc, norm = score_curves(read_run(scored))
    assert (acc.name, norm.name) == ("mmlu", "mmlu, acc norm")  # the group, not its subjects
    assert acc.values.tolist() == [sum(right) / 40 for right in RIGHT.values()]
    assert acc.axes["step"].tolist() == list(RIGHT)
    assert acc.axes["samples"].tolist() == [64 * step for step in RIGHT]
    assert acc.axes["time"] == pytest.approx([2.5 * step for step in RIGHT])


# A second process or sengi eval RUN may score a checkpoint whose step record does not exist (any more).
def test_the_samples_are_those_that_the_evaluation_says(scored: Path) -> None:
    lines = (scored / "dynamics.jsonl").read_text().splitlines(keepends=True)
    (scored / "dynamics.jsonl").write_text("".join(lines[:10]))
    assert score_curves(read_run(scored))[0].axes["samples"].tolist() == [64 * step for step in RIGHT]


def test_the_table_has_base_best_and_samples_to_peak(scored: Path) -> None:
    table = timeline_table(read_run(scored))
    assert table.rows[0].cells == ("mmlu: acc", "4", "25.0%", "70.0%", "60", "3,840", "62.5%")
    assert "not corrected" in table.note


def test_suites_do_not_mix_and_the_one_with_most_points_counts(scored: Path) -> None:
    write_tasks(scored, 0, (1, 1), "e" * 64, "-eeeeeeee")
    write_tasks(scored, 120, (2, 2), "e" * 64, "-eeeeeeee")
    values = [sum(right) / 40 for right in RIGHT.values()]
    assert score_curves(read_run(scored))[0].values.tolist() == values
    for step in (30, 60):
        (scored / f"evaluations/step-{step:08d}-tasks.json").unlink()
    (scored / "evaluations/step-00000090-tasks.json").unlink()
    (scored / "evaluations/step-00000000-tasks.json").unlink()
    assert score_curves(read_run(scored))[0].values.tolist() == [2 / 40, 4 / 40]


def test_before_and_after_alone_are_a_curve_of_two_points_and_one_is_none(scored: Path) -> None:
    for step in (30, 60, 90, 120):
        for file in (scored / "evaluations").glob(f"step-{step:08d}-tasks*"):
            file.unlink()
    assert score_curves(read_run(scored)) == []
    assert timeline_table(read_run(scored)).rows == ()


def test_a_group_is_paired_over_the_questions_of_its_tasks(scored: Path) -> None:
    run = read_run(scored)
    assert group_of_task(run) == {"mmlu_law": "mmlu", "mmlu_physics": "mmlu"}
    whole = next(c for c in compare_scores(run) if (c.before.task, c.before.metric) == ("mmlu", "acc"))
    assert whole.paired is not None
    assert (whole.paired.difference.n, whole.paired.gained) == (40, 15)
    assert whole.paired.difference.value == pytest.approx(15 / 40)
    # only what is compared is kept in memory: the first and the last
    assert [evaluation.step for evaluation in run.evaluations if evaluation.items] == [0, 120]


def test_tasks_of_a_group_share_a_table_and_make_no_headline(scored: Path) -> None:
    run = read_run(scored)
    comparisons = compare_scores(run)
    tables = {table.title: table for table in score_tables(comparisons) if table.title.startswith("mmlu")}
    assert list(tables) == ["mmlu: acc", "mmlu: acc norm", "mmlu, its tasks: acc", "mmlu, its tasks: acc norm"]
    assert [row.cells[0] for row in tables["mmlu, its tasks: acc"].rows] == ["mmlu_law", "mmlu_physics"]
    # the page draws a bar for each row of the tables, in the order of the comparisons
    flat = [row.cells[0] for table in score_tables(comparisons) for row in table.rows]
    assert flat == [c.before.task if c.part_of else c.before.group for c in comparisons]
    outcome = " ".join(judge_run(run, comparisons, 0.0).outcome)
    assert "mmlu" in outcome
    assert "mmlu_law" not in outcome


def test_a_question_with_two_metrics_is_one_example(scored: Path) -> None:
    for file in (scored / "evaluations").iterdir():
        if "-tasks" not in file.name:
            file.unlink()
    examples = pick_examples(read_run(scored), limit=100)
    assert len(examples) == 40


def test_page_markdown_and_picture_show_them(scored: Path) -> None:
    report = build_report(scored, now=0.0)
    chart = chart_json(report.run) or ""
    for name in ("figure-scores", "source-scores-0", "source-scores-1"):
        assert f'"{name}"' in chart
    html = render_page(report)
    assert "Scores over the training" in html
    pictures = draw_figures(report)
    assert pictures["score_curves.png"].startswith(b"\x89PNG")
    text = render_markdown(report, list(pictures))
    assert "figures/score_curves.png" in text
    assert "| mmlu: acc | 4 | 25.0% | 70.0% | 60 | 3,840 | 62.5% |" in text


def test_scores_on_another_scale_are_in_the_table_only(run_folder: Path) -> None:
    for step, value in ((0, 4.5), (60, 5.5), (120, 5.25)):
        entry = score("mt_bench", "score", "all", value, value - 0.3, math.nan, 80)
        file = run_folder / f"evaluations/step-{step:08d}-tasks.json"
        file.write_text(json.dumps({"scores": [entry | {"high": None}]}))
    assert "figure-scores" not in (chart_json(read_run(run_folder)) or "")
    assert timeline_table(read_run(run_folder)).rows[0].cells[2:5] == ("4.500", "5.500", "60")
