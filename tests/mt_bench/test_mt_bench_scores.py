from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.mt_bench.bench_folder import ANSWERS, write_bench

from sengi.mt_bench.files import Bench, BenchQuestion, load_bench
from sengi.mt_bench.judge import Judgement
from sengi.mt_bench.rating import Rating
from sengi.mt_bench.scores import count_judgements, judge_noise, score_judgements
from sengi.statistics.intervals import bootstrap_interval

RATINGS = st.integers(10, 100).map(lambda tenths: tenths / 10)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return load_bench(write_bench(tmp_path), "judge")


def judgements(ratings: Mapping[tuple[Any, int], float | None], repeat: int = 0) -> list[Judgement]:
    return [
        Judgement(number, turn, repeat, Rating(score, "" if score is not None else "no rating"))
        for (number, turn), score in ratings.items()
    ]


def values(rows: list[dict[str, Any]], metric: str = "score") -> dict[str, tuple[float, int]]:
    return {row["group"]: (row["value"], row["n"]) for row in rows if row["metric"] == metric}


ALL = {(81, 1): 8.0, (81, 2): 6.0, (111, 1): 2.0, (111, 2): 1.0, (91, 1): 9.0, (91, 2): 9.5, (141, 1): 5.0, (141, 2): 7}


def test_means_of_turns_and_categories(bench: Bench) -> None:
    evaluation = score_judgements(bench, ANSWERS, judgements(ALL), {}, "judge")
    assert values(evaluation.scores) == {
        "all": (pytest.approx(fmean(ALL.values())), 4),
        "turn=1": (6.0, 4),
        "turn=2": (5.875, 4),
        "category=writing": (7.0, 1),
        "category=math": (1.5, 1),
        "category=roleplay": (9.25, 1),
        "category=stem": (6.0, 1),
    }
    assert not evaluation.excluded
    assert [(item["id"], item["correct"], item["topic"]) for item in evaluation.items] == [
        ("81", 7.0, "writing"),
        ("111", 1.5, "math"),
        ("91", 9.25, "roleplay"),
        ("141", 6.0, "stem"),
    ]
    assert evaluation.items[0]["turn_scores"] == [8.0, 6.0]
    # Rule: the interval of few values is unknown, and JSON has no NaN.
    assert [(row["low"], row["high"]) for row in evaluation.scores] == [(None, None)] * 7


@given(st.lists(st.tuples(RATINGS, RATINGS), min_size=1, max_size=12))
def test_the_mean_is_that_of_fastchats_show_result(pairs: list[tuple[float, float]]) -> None:
    # Rule: show_result.py takes the mean of all rows alike; with nothing unreadable ours is the same number.
    questions = tuple(BenchQuestion(number, "stem", ("a", "b")) for number in range(len(pairs)))
    ratings = {(number, turn): pair[turn - 1] for number, pair in enumerate(pairs) for turn in (1, 2)}
    prompts = load_prompts()
    answers: dict[int | str, tuple[str, ...]] = {number: ("x", "y") for number in range(len(pairs))}
    evaluation = score_judgements(Bench(questions, prompts), answers, judgements(ratings), {}, "judge")
    found = values(evaluation.scores)
    assert found["all"][0] == pytest.approx(fmean(ratings.values()))
    assert found["turn=1"][0] == pytest.approx(fmean(pair[0] for pair in pairs))
    assert found["turn=2"][0] == pytest.approx(fmean(pair[1] for pair in pairs))


def load_prompts() -> dict[str, Any]:
    from tests.mt_bench.bench_folder import PROMPTS

    from sengi.mt_bench.prompts import parse_judge_prompt

    return {row["name"]: parse_judge_prompt(row, "file:1") for row in PROMPTS[1:]}


def test_the_interval_keeps_both_turns_of_a_question_together(bench: Bench) -> None:
    # Rule: turns of one question are alike; taken apart they would be eight values, and the interval too narrow.
    ratings: dict[tuple[Any, int], float | None] = {}
    scores = (2.0, 4.0, 6.0, 10.0, 9.0)
    for number, score in zip((81, 111, 91, 141, 142), scores, strict=True):
        ratings |= {(number, 1): score, (number, 2): score}
    five = replace(bench, questions=(*bench.questions, BenchQuestion(142, "stem", ("a", "b"))))
    row = score_judgements(five, {**ANSWERS, 142: ("c", "d")}, judgements(ratings), {}, "judge").scores[0]
    pairs = bootstrap_interval(scores)
    apart = bootstrap_interval([*scores, *scores])
    assert (row["low"], row["high"], row["n"]) == (pairs.low, pairs.high, 5)
    assert row["high"] - row["low"] > 1.2 * (apart.high - apart.low)


def test_a_question_with_one_unreadable_turn_is_in_the_other_turns_mean_only(bench: Bench) -> None:
    ratings: dict[tuple[Any, int], float | None] = {**ALL, (111, 2): None}
    evaluation = score_judgements(bench, ANSWERS, judgements(ratings), {}, "judge")
    found = values(evaluation.scores)
    assert found["all"] == (pytest.approx((7 + 9.25 + 6) / 3), 3)
    assert found["turn=1"] == (6.0, 4)
    assert found["turn=2"] == (pytest.approx(22.5 / 3), 3)
    assert "category=math" not in found
    assert evaluation.excluded == [{"task": "mt_bench", "id": "111", "reason": "judgement of turn 2: no rating"}]
    assert "111" not in [item["id"] for item in evaluation.items]


def test_without_one_readable_judgement_there_is_no_score_and_it_is_said(bench: Bench) -> None:
    evaluation = score_judgements(bench, ANSWERS, judgements(dict.fromkeys(ALL)), {}, "judge")
    assert (evaluation.scores, evaluation.items, len(evaluation.excluded)) == ([], [], 8)
    assert evaluation.notes == ["not one judgement could be rated, so there is no score; try another judge"]


def test_questions_without_answers_are_listed(bench: Bench) -> None:
    some = {place: score for place, score in ALL.items() if place[0] != 91}
    reason = "the prompt of turn 2 fills the model's context"
    evaluation = score_judgements(bench, ANSWERS, judgements(some), {91: reason}, "judge")
    assert evaluation.excluded == [{"task": "mt_bench", "id": "91", "reason": reason}]
    assert values(evaluation.scores)["all"][1] == 3


def test_items_of_another_judge_have_another_prompt(bench: Bench) -> None:
    # Rule: who compares two models must be able to see that they were judged alike.
    hashes = [
        [item["prompt_hash"] for item in score_judgements(bench, ANSWERS, judgements(ALL), {}, judge).items]
        for judge in ("judge", "judge", "other")
    ]
    assert hashes[0] == hashes[1]
    assert not set(hashes[0]) & set(hashes[2])
    assert len(set(hashes[0])) == 4


def test_noise_of_a_judge_by_hand() -> None:
    # Differences 1, -1, 2, 0: mean absolute 1; deviation sqrt(mean square / 2) = sqrt(1.5 / 2); of 8 ratings / sqrt(8).
    noise = judge_noise([(8, 7), (6, 7), (9, 7), (5, 5)], 8)
    assert noise.mean_absolute_difference.value == 1.0
    assert noise.deviation.value == pytest.approx(math.sqrt(0.75))
    assert noise.of_mean.value == pytest.approx(math.sqrt(0.75 / 8))
    assert noise.deviation.low <= noise.deviation.value <= noise.deviation.high
    assert noise.deviation.n == 4


def test_noise_recovers_the_deviation_it_was_made_with() -> None:
    # Rule: ratings = truth + noise of deviation 0.8; the truth of the answers must not count.
    random = np.random.default_rng(0)
    truth = random.uniform(1, 10, 4000)
    pairs = list(zip(truth + random.normal(0, 0.8, 4000), truth + random.normal(0, 0.8, 4000), strict=True))
    noise = judge_noise(pairs, 160)
    assert noise.deviation.value == pytest.approx(0.8, rel=0.04)
    # The mean of 160 such ratings varies by 0.8 / sqrt(160) when the judge alone changes.
    means = random.normal(0, 0.8, (4000, 160)).mean(1)
    assert noise.of_mean.value == pytest.approx(means.std(), rel=0.05)


def test_a_single_repeated_turn_has_no_interval(bench: Bench) -> None:
    evaluation = score_judgements(bench, ANSWERS, judgements(ALL) + judgements({(81, 1): 6.0}, repeat=1), {}, "judge")
    rows = {row["metric"]: row for row in evaluation.scores if row["metric"] != "score"}
    assert rows["judge_mean_absolute_difference"]["value"] == 2.0
    assert rows["judge_noise"]["value"] == pytest.approx(math.sqrt(2))
    assert rows["judge_noise_of_mean"]["value"] == pytest.approx(math.sqrt(2 / 8))
    assert {row["low"] for row in rows.values()} == {None}
    # Rule: the repeated rating measures the judge; it is in no score.
    assert values(evaluation.scores)["all"] == (pytest.approx(fmean(ALL.values())), 4)


def test_an_unreadable_repeat_is_counted_and_excludes_nothing(bench: Bench) -> None:
    everything = judgements(ALL) + judgements({(81, 1): None, (81, 2): 6.0}, repeat=1)
    evaluation = score_judgements(bench, ANSWERS, everything, {}, "judge")
    assert not evaluation.excluded
    assert values(evaluation.scores, "judge_noise")["all"] == (0.0, 1)
    assert count_judgements(everything) == [
        "8 judgements, 0 not rated",
        "2 repeated judgements, 1 not rated (no rating: 1)",
    ]
