"""Ranking: settings over seeds and runs one by one, each against the best, corrected for looking at many."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.study.ranking import chosen_on_half, peak_of, rank_runs, rank_settings, spread_of
from sengi.study.recording import Point
from sengi.study.results import RunResult

sys.path.append(str(Path(__file__).parent))
from fake_results import make_run, make_study, results_of

RATES = {"learning_rate": [1e-4, 1e-3, 1e-2]}


def test_settings_are_ranked_by_their_mean_over_seeds_and_compared_with_the_best() -> None:
    ranked = rank_settings(make_study(RATES, lambda s: 2 + 20 * s["learning_rate"]))
    assert [one.point for one in ranked] == [1, 2, 3]
    assert [one.word for one in ranked] == ["best", "worse", "worse"]
    assert ranked[0].against_best is None
    assert ranked[2].against_best is not None
    assert ranked[2].against_best.value == pytest.approx(-0.198, abs=0.01)  # in quality: below the best
    assert ranked[0].score.low < 2.002 < ranked[0].score.high
    assert ranked[0].score.n == 3


def test_equal_settings_are_not_told_apart() -> None:
    ranked = rank_settings(make_study(RATES, lambda s: 2.0, chance=0.01))
    assert {one.word for one in ranked[1:]} == {"not told apart"}


@settings(max_examples=6, deadline=None)
@given(st.randoms(), st.integers(0, 99))
def test_the_order_of_runs_does_not_matter(random: Any, seed: int) -> None:
    results = make_study(RATES, lambda s: 2 + s["learning_rate"], seed=seed, items=12)
    mixed = list(results.runs)
    random.shuffle(mixed)
    again, first = rank_settings(replace(results, runs=tuple(mixed))), rank_settings(results)
    assert [(one.point, one.word) for one in again] == [(one.point, one.word) for one in first]
    assert [one.score.value for one in again] == pytest.approx([one.score.value for one in first])
    assert [one.p_holm for one in again] == pytest.approx([one.p_holm for one in first], nan_ok=True)


def test_holm_makes_every_p_at_least_as_large() -> None:
    for one in rank_settings(make_study(RATES, lambda s: 2 + s["learning_rate"], chance=0.01))[1:]:
        assert one.against_best is not None
        assert one.p_holm >= one.against_best.p_value


def test_runs_without_a_score_are_kept_aside_by_their_setting() -> None:
    results = make_study(RATES, lambda s: 2.0)
    lost = make_run(2, {"learning_rate": 1e-3}, 9, None)
    ranked = {one.point: one for one in rank_settings(replace(results, runs=(*results.runs, lost)))}
    assert [run.name for run in ranked[2].others] == ["002-s9"]
    alone = results_of([lost], ("learning_rate",))
    assert rank_settings(alone) == []
    assert rank_runs(alone) == []


def answers(point: int, seed: int, right: int, low: float, high: float) -> RunResult:
    """A run that answered so many of 20 questions."""
    items = {f"q{n}": (float(n < right), 1.0) for n in range(20)}
    score = Point(2000, right / 20, low, high)
    return replace(make_run(point, {"learning_rate": point}, seed, 1.0), score=score, evaluations=(score,), items=items)


def test_the_score_of_a_setting_of_one_run_is_that_run_s() -> None:
    ranked = rank_settings(results_of([answers(1, 1, 19, 0.76, 0.99), answers(2, 1, 0, 0.0, 0.16)], minimize=False))
    assert [(one.score.value, one.score.low, one.score.high) for one in ranked] == [
        (0.95, 0.76, 0.99),
        (0.0, 0.0, 0.16),
    ]


@pytest.mark.parametrize("right", [0, 1, 19, 20])
def test_the_score_of_several_seeds_is_a_share_and_never_certain(right: int) -> None:
    runs = [answers(point, seed, right, 0.0, 1.0) for point in (1, 2) for seed in (1, 2)]
    for one in rank_settings(results_of(runs, minimize=False)):
        assert 0 <= one.score.low <= one.score.value <= one.score.high <= 1
        assert one.score.high - one.score.low > 0.05


@pytest.mark.parametrize("how", [{"state": "failed"}, {"state": "stopped", "by_alarm": True}])
def test_a_setting_that_lost_a_seed_ranks_behind_those_that_lost_none(how: dict[str, Any]) -> None:
    results = make_study({"learning_rate": [1e-4, 1e-3]}, lambda s: 2 + 100 * s["learning_rate"], seeds=(1, 2))
    lucky = [make_run(3, {"learning_rate": 1e-2}, 1, 1.5), make_run(3, {"learning_rate": 1e-2}, 2, None, **how)]
    mixed = replace(results, runs=(*results.runs, *lucky))
    ranked = rank_settings(mixed)
    assert [one.point for one in ranked] == [1, 2, 3]
    last = ranked[-1]
    assert [run.name for run in last.lost] == ["003-s2"]
    assert last.against_best is not None
    assert last.against_best.value > 0
    assert last.word == "not told apart"  # and not worse, however sure the difference
    halves = chosen_on_half(mixed, ranked)
    assert halves is not None
    assert halves.best.checkpoint == 0
    # one that the judge stopped was called worse on its way: nothing was lost
    stopped = [lucky[0], replace(lucky[1], state="stopped", by_alarm=False)]
    assert [one.point for one in rank_settings(replace(results, runs=(*results.runs, *stopped)))] == [3, 1, 2]


def test_runs_that_ended_worse_than_they_began_do_not_widen_the_spread_of_all() -> None:
    calm = make_study({"learning_rate": [1e-4, 1e-3]}, lambda s: 2.0, chance=0.002)
    wild = [make_run(3, {"learning_rate": 1.0}, seed, 5.0 + 3 * seed) for seed in (1, 2)]
    with_wild = replace(calm, runs=(*calm.runs, *wild))
    assert spread_of(with_wild) == spread_of(calm)
    tame = [make_run(3, {"learning_rate": 1.0}, seed, 3.0 + 0.3 * seed) for seed in (1, 2)]
    spread, narrow = spread_of(replace(calm, runs=(*calm.runs, *tame))), spread_of(calm)
    assert spread is not None
    assert narrow is not None
    assert spread.sd > 10 * narrow.sd


def test_runs_are_compared_with_the_best_run_question_by_question() -> None:
    rows = rank_runs(make_study(RATES, lambda s: 2 + 20 * s["learning_rate"], seeds=(1,)))
    assert [row.run.point for row in rows] == [1, 2, 3]
    assert rows[0].paired is None
    assert math.isnan(rows[0].p_holm)
    assert rows[2].paired is not None
    assert rows[2].paired.difference.value == pytest.approx(-0.198, abs=0.01)  # the best run's loss minus this one's
    assert rows[2].paired.p_value <= rows[2].p_holm < 0.05
    bare = rank_runs(make_study(RATES, lambda s: 2.0, seeds=(1,), items=0))
    assert all(row.paired is None for row in bare)


def test_the_peak_of_a_run_leaves_out_the_untouched_model() -> None:
    run = make_run(1, {}, 1, 2.0)
    points = (Point(0, 1.0, 1.0, 1.0), Point(500, 1.8, 1.7, 1.9), Point(2000, 2.0, 1.9, 2.1))
    peak = peak_of(replace(run, evaluations=points), minimize=True)
    assert (peak.samples, peak.score) == (500, 1.8)
    assert peak.seconds == pytest.approx(10 * 500 / 2000)


def test_choosing_on_one_half_finds_a_clear_winner_and_needs_questions() -> None:
    results = make_study(RATES, lambda s: 2 + 100 * s["learning_rate"])
    halves = chosen_on_half(results, rank_settings(results))
    assert halves is not None
    assert halves.best.checkpoint == halves.swapped.checkpoint == 0
    few = make_study(RATES, lambda s: 2.0, items=5)
    assert chosen_on_half(few, rank_settings(few)) is None
