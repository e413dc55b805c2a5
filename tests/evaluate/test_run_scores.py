"""One score over a run: the best checkpoint with and without correction, and samples to the peak."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sengi.evaluate.run_evaluations import Point, timelines
from sengi.evaluate.run_scores import by_task, score_line

Right = dict[int, list[float]]  # step -> result of each question


def points(right: Right, samples_a_step: int = 10) -> list[Point]:
    return [
        Point(step, step * samples_a_step, float(np.mean(row)), float(np.mean(row)) - 0.1, math.nan, len(row), True)
        for step, row in right.items()
    ]


def items(right: Right, task: str = "own", metric: str = "acc", **more: Any) -> dict[int, Any]:
    return {
        step: by_task(
            [{"task": task, "id": str(i), "metric": metric, "correct": value, **more} for i, value in enumerate(row)]
        )
        for step, row in right.items()
    }


# 40 questions; step 4 answers 30 of them, step 8 one more: that is noise, and step 2 is clearly worse
RIGHT: Right = {
    0: [1.0] * 4 + [0.0] * 36,
    2: [1.0] * 10 + [0.0] * 30,
    4: [1.0] * 30 + [0.0] * 10,
    8: [1.0] * 31 + [0.0] * 9,
}


def test_the_best_checkpoint_and_the_samples_to_it() -> None:
    line = score_line("own", "acc", "all", points(RIGHT), items(RIGHT), {})
    assert line.name == "own/acc"
    assert line.base is not None
    assert line.base.value == 0.1
    assert [point.step for point in line.points] == [2, 4, 8]  # the base is no candidate
    assert line.naive is not None
    assert (line.naive.step, line.naive.samples_seen, line.naive.score.value) == (8, 80, 31 / 40)
    # the paper's number, and the one that noise does not move
    assert line.within_noise is not None
    assert (line.within_noise.step, line.within_noise.samples_seen) == (4, 40)
    # chosen on one half, scored on the other: 20 questions that had no part in it
    assert line.uncorrected == ""
    assert line.best is not None
    assert line.swapped is not None
    assert line.best.step in (4, 8)
    assert line.best.score.n == line.swapped.score.n == 20
    assert line.best.score.value + line.swapped.score.value == pytest.approx(2 * 30.5 / 40, abs=1 / 20)


def test_lower_is_better_and_weights_count() -> None:
    losses: Right = {1: [2.0, 1.0] * 10, 2: [1.0, 0.5] * 10, 3: [1.5, 0.75] * 10}
    weighted = {
        step: by_task(
            [
                {"task": "heldout_x", "id": str(i), "metric": "loss", "correct": value, "weight": 1 + 3 * (i % 2)}
                for i, value in enumerate(row)
            ]
        )
        for step, row in losses.items()
    }
    means = {step: float(np.average(row, weights=[1, 4] * 10)) for step, row in losses.items()}
    line = score_line(
        "heldout_x", "loss", "all", [Point(s, s, m, m, m, 20, False) for s, m in means.items()], weighted, {}
    )
    assert not line.higher_is_better
    assert line.uncorrected == ""
    assert line.naive is not None
    assert line.best is not None
    assert (line.naive.step, line.naive.score.value) == (2, pytest.approx(0.6))
    assert line.best.step == 2
    assert 0.5 < line.best.score.value < 1  # half of the samples, however the split fell


@pytest.mark.parametrize(
    ("right", "given", "why"),
    [
        (RIGHT, {}, "no mean over single questions"),
        (RIGHT, items({step: row[:39] for step, row in RIGHT.items()}), "no mean over single questions"),
        ({1: [1.0] * 9, 2: [0.0] * 9}, items({1: [1.0] * 9, 2: [0.0] * 9}), "9 questions are too few"),
    ],
    ids=["no items", "items of other questions", "few questions"],
)
def test_without_questions_the_naive_best_stands_alone_and_says_why(right: Right, given: Any, why: str) -> None:
    line = score_line("own", "acc", "all", points(right), given, {})
    assert line.naive is not None
    assert (line.best, line.swapped, line.within_noise) == (None, None, None)
    assert why in line.uncorrected


# A group has no questions of its own: those of its tasks are its score where tasks weigh by their size.
def test_a_group_is_pooled_where_its_tasks_make_it_up() -> None:
    # mmlu_stem's tasks are not named after it, and one that is belongs to another group
    pooled = {
        step: {
            "mmlu_algebra": items({step: row[:10]}, "mmlu_algebra")[step]["mmlu_algebra"],
            "mmlu_physics": items({step: row[10:]}, "mmlu_physics")[step]["mmlu_physics"],
            "mmlu_stem_de": items({step: row}, "mmlu_stem_de")[step]["mmlu_stem_de"],
        }
        for step, row in RIGHT.items()
    }
    parts = {"mmlu_stem": ["mmlu_algebra", "mmlu_physics"], "mmlu": ["mmlu_stem"], "german": ["mmlu_stem_de"]}
    for group in ("mmlu_stem", "mmlu"):
        line = score_line(group, "acc", "all", points(RIGHT), pooled, parts)
        assert (line.uncorrected, line.best is not None) == ("", True)
    equal = [  # the plain mean of the two tasks is another number
        Point(step, step, (np.mean(row[:10]) + np.mean(row[10:])) / 2, 0, 1, 40, True) for step, row in RIGHT.items()
    ]
    assert "no mean" in score_line("mmlu", "acc", "all", equal, pooled, parts).uncorrected


def test_parts_of_the_questions_and_the_second_way_to_count() -> None:
    marked = items(RIGHT, metric="accuracy")
    for part in marked.values():
        for number, item in enumerate(part["own"]):
            item |= {"group": "taught" if number < 20 else "control", "correct_sum": 1 - item["correct"]}
    taught = {step: row[:20] for step, row in RIGHT.items()}
    line = score_line("own", "accuracy", "group=taught", points(taught), marked, {})
    assert (line.uncorrected, line.name) == ("", "own/accuracy/group=taught")
    by_sum = {step: [1 - value for value in row] for step, row in RIGHT.items()}
    line = score_line("own", "accuracy_sum", "all", points(by_sum), marked, {})
    assert line.uncorrected == ""
    assert line.naive is not None
    assert line.naive.step == 2


def test_nothing_but_the_base_is_no_choice() -> None:
    line = score_line("own", "acc", "all", points({0: [1.0] * 20}), {}, {})
    assert (line.naive, line.best, line.uncorrected) == (None, None, "no checkpoint is scored")


def test_scores_that_are_no_numbers_are_left_out() -> None:
    broken = [Point(1, 1, math.nan, math.nan, math.nan, 20, True), *points(RIGHT)]
    line = score_line("own", "acc", "all", broken, items(RIGHT), {})
    assert [point.step for point in line.points] == [2, 4, 8]


# The direction comes with the score: fewer stereotypes are better, though "pct_stereotype" does not say so by its name.
def test_the_best_is_by_the_direction_that_the_score_carries() -> None:
    def evaluation(step: int, value: float) -> dict[str, Any]:
        row = {"task": "crows", "metric": "pct_stereotype", "group": "all", "value": value, "low": None, "high": None}
        return {"samples_seen": 8 * step, "scores": [row | {"n": 40, "higher_is_better": False}]}

    evaluations = {step: evaluation(step, value) for step, value in ((1, 0.875), (2, 0.125), (3, 0.5))}
    [(key, points)] = timelines(evaluations).items()
    line = score_line(*key, points, {}, {})
    assert not line.higher_is_better
    assert line.naive is not None
    assert line.naive.step == 2
