"""The claims table: planted effects are found, missing runs are said, nothing is claimed beyond its interval."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.study.claim_rules import CLAIMS, ClaimResult, Verdict
from sengi.study.claims import judge_claims
from sengi.study.recording import Point
from sengi.study.results import RunResult, StudyResults

sys.path.append(str(Path(__file__).parent))
from fake_results import BASE, make_run, make_study, results_of

BATCH_AND_RATE: dict[str, list[Any]] = {"effective_batch_size": [8, 40], "learning_rate": [1e-4, 1e-3]}
PHASED = {"by": "phase", "at": None}
BY_LENGTH = {"by": "response_length", "at": 0.5}


def claim(results: StudyResults, number: int) -> ClaimResult:
    return judge_claims(results)[number - 1]


def study_of(settings: list[dict[str, Any]], scores: list[float], seeds: int = 3, **more: Any) -> StudyResults:
    """A study of listed points, with a little chance between seeds."""
    chance = [0.001, -0.001, 0.0]
    runs = [
        make_run(point, one, seed, score + chance[seed], **more)
        for point, (one, score) in enumerate(zip(settings, scores, strict=True), start=1)
        for seed in range(seeds)
    ]
    return results_of(runs, tuple(settings[0]))


# claim -> the settings that it favours, and the others
SIDES: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {
    1: ({"effective_batch_size": 40}, {"effective_batch_size": 8}),
    3: ({"learning_rate": 1e-5}, {"learning_rate": 1e-4}),
    4: ({"warmup_steps": 0}, {"warmup_steps": 25}),
    5: ({"lr_scheduler_type": "constant"}, {"lr_scheduler_type": "cosine"}),
    6: ({"strategy": "stacked", "phases": None}, {"strategy": "phased", "phases": PHASED}),
    7: ({"strategy": "stacked", "phases": None}, {"strategy": "phased", "phases": BY_LENGTH}),
    9: ({"max_tokens_per_device": 4096}, {"max_tokens_per_device": 512}),
    10: (
        {"effective_batch_size": 40, "lr_scheduler_type": "constant", "warmup_steps": 0},
        {"effective_batch_size": 8, "lr_scheduler_type": "linear", "warmup_steps": 0.03},
    ),
}
EQUAL: dict[int, Verdict] = dict.fromkeys((3, 4, 5, 6, 7, 9), "holds") | dict.fromkeys((1, 10), "does not hold")


@pytest.mark.parametrize("number", SIDES)
def test_a_planted_effect_is_found_either_way_and_none_is_called_none(number: int) -> None:
    favoured, other = SIDES[number]
    better = claim(study_of([favoured, other], [1.80, 2.00]), number)
    worse = claim(study_of([favoured, other], [2.00, 1.80]), number)
    same = claim(study_of([favoured, other], [2.00, 2.00], spread=0.01), number)
    # equality is the claim of number 9; all others favour a side
    assert better.verdict == ("does not hold" if number == 9 else "holds")
    assert abs(better.effect) == pytest.approx(0.2, abs=0.01)
    assert better.low <= better.effect <= better.high
    assert (better.effect > 0) == (worse.effect < 0)
    assert worse.verdict == "does not hold"
    # "at least as good" holds for equals, "better" does not; what could have been seen is stated
    assert same.verdict == EQUAL[number]
    assert 0 < same.detectable < 0.02
    assert len(better.runs) == 6


def test_stacked_against_phased_is_decided_by_the_score_and_says_so() -> None:
    # the claim has a second half, samples to the peak, which the verdict must not seem to rest on
    reason = claim(study_of(list(SIDES[6]), [1.80, 2.00]), 6).reason
    assert "decided by the score alone, samples to the peak" in reason


@pytest.mark.parametrize("number", SIDES)
def test_with_much_chance_nothing_is_told(number: int) -> None:
    favoured, other = SIDES[number]
    runs = [
        make_run(point, one, seed, 2.0 + (0.3, -0.3)[seed])
        for point, one in enumerate((favoured, other), start=1)
        for seed in (0, 1)
    ]
    found = claim(results_of(runs, tuple(favoured)), number)
    assert found.verdict == "cannot tell"
    assert found.detectable > 0.3


@settings(max_examples=8, deadline=None)
@given(st.randoms(), st.integers(0, 99), st.sampled_from([0.0, 0.05, -0.05]))
def test_the_order_of_runs_does_not_matter(random: Any, seed: int, effect: float) -> None:
    results = make_study(BATCH_AND_RATE, lambda s: 2 - effect * (s["effective_batch_size"] == 40), seed=seed, items=10)
    mixed = list(results.runs)
    random.shuffle(mixed)
    assert judge_claims(dataclasses.replace(results, runs=tuple(mixed))) == judge_claims(results)


@settings(max_examples=15, deadline=None)
@given(
    st.floats(-0.3, 0.3),
    st.floats(0.0005, 0.1),
    st.integers(1, 3),
    st.sampled_from([0, 5, 12]),
    st.integers(0, 999),
)
def test_verdicts_follow_their_intervals(effect: float, chance: float, seeds: int, items: int, seed: int) -> None:
    results = make_study(
        BATCH_AND_RATE,
        lambda s: 2 - effect * (s["effective_batch_size"] == 40),
        seeds=range(seeds),
        chance=chance,
        items=items,
        seed=seed,
    )
    names = {run.name for run in results.scored}
    for found in judge_claims(results):
        assert set(found.runs) <= names
        assert found.reason
        if math.isnan(found.low):
            assert found.verdict == "cannot tell"
        else:
            assert found.low <= found.effect <= found.high
            assert not (found.verdict == "holds" and found.high < 0)
            assert not (found.verdict == "does not hold" and found.low > 0 and found.number != 9)


@pytest.mark.parametrize("number", CLAIMS)
def test_without_the_runs_for_it_a_claim_cannot_be_told_and_says_what_is_missing(number: int) -> None:
    lonely = claim(study_of([{"weight_decay": 0.0}], [2.0]), number)
    assert lonely.verdict == "cannot tell"
    assert lonely.runs == ()
    assert math.isnan(lonely.effect)
    words = {
        1: "effective_batch_size 16",
        2: "effective_batch_size 16",
        3: "learning_rate 0.001",
        4: "0 and another value",
        5: "constant and a decay",
        6: "strategy: [stacked, phased]",
        7: "response_length",
        8: "4 finished settings",
        9: "max_tokens_per_device",
        10: "preset: [lab, tulu]",
    }
    assert words[number] in lonely.reason
    # nor with no finished run at all
    empty = claim(results_of([make_run(1, {"learning_rate": 1e-3}, 1, None)], ("learning_rate",)), number)
    assert empty.verdict == "cannot tell"


def test_one_seed_is_said_and_without_single_results_nothing_is_sure() -> None:
    points = [{"effective_batch_size": 8}, {"effective_batch_size": 40}]
    one = claim(study_of(points, [2.0, 1.8], seeds=1), 1)
    assert one.verdict == "holds"
    assert "one seed: the interval counts the choice of questions, not the chance of training" in one.reason
    bare = claim(study_of(points, [2.0, 1.8], seeds=1, items=0), 1)
    assert bare.verdict == "cannot tell"
    assert bare.effect == pytest.approx(0.2)
    assert "nothing says how sure" in bare.reason


def test_runs_that_differ_in_more_are_not_compared() -> None:
    # a larger batch at a higher rate: which of the two made the difference?
    mixed = study_of(
        [{"effective_batch_size": 8, "learning_rate": 1e-4}, {"effective_batch_size": 40, "learning_rate": 1e-3}],
        [2.0, 1.8],
    )
    assert claim(mixed, 1).verdict == "cannot tell"
    assert claim(mixed, 1).reason == "no two finished runs differ in this alone"


def test_a_mean_that_half_of_its_blocks_contradict_tells_nothing() -> None:
    # the small batch is ahead at one rate and diverges at the other
    table = {(8, 1e-4): 1.9, (40, 1e-4): 2.0, (8, 1e-3): 6.0, (40, 1e-3): 1.8}
    runs = [
        make_run(point, {"effective_batch_size": batch, "learning_rate": rate}, seed, score + 0.01 * seed)
        for point, ((batch, rate), score) in enumerate(table.items(), start=1)
        for seed in (0, 1)
    ]
    found = claim(results_of(runs, ("effective_batch_size", "learning_rate")), 1)
    assert found.low > 0
    assert found.verdict == "cannot tell"
    assert "the same way in 1 only: it depends on them" in found.reason


def test_failed_and_stopped_runs_carry_no_claim_about_scores_but_their_curves_count() -> None:
    points = [{"effective_batch_size": 8}, {"effective_batch_size": 40}]
    runs = [make_run(n, one, seed, 2.0, early=0.2 * n) for n, one in enumerate(points, 1) for seed in (1, 2)]
    runs.append(make_run(2, points[1], 3, None, state="stopped", early=0.4))
    runs.append(make_run(1, points[0], 3, None, state="failed", early=0.2))
    results = results_of(runs, ("effective_batch_size",))
    assert claim(results, 1).runs == ("001-s1", "001-s2", "002-s1", "002-s2")
    early = claim(results, 2)
    assert early.verdict == "holds"
    assert "002-s3" in early.runs
    assert early.effect == pytest.approx(0.2, abs=0.06)


def test_early_pace_needs_steps_of_the_largest_batch() -> None:
    results = study_of([{"effective_batch_size": 8}, {"effective_batch_size": 500}], [2.0, 2.0])
    assert "too few steps" in claim(results, 2).reason


def test_the_lower_rate_is_held_against_each_higher_one_at_the_largest_batch() -> None:
    space = {"effective_batch_size": [8, 40], "learning_rate": [1e-5, 1e-4, 1e-3]}
    # at the small batch the highest rate is best; at the large one the middle one is
    table = {(8, 1e-3): 1.5, (40, 1e-4): 1.8}
    results = make_study(space, lambda s: table.get((s["effective_batch_size"], s["learning_rate"]), 2.0))
    found = claim(results, 3)
    assert found.verdict == "does not hold"
    assert found.effect == pytest.approx(-0.2, abs=0.01)
    assert found.reason.startswith("learning_rate 1e-05 against 0.0001 (of 2 comparisons")
    assert "at batch 40" in found.reason
    assert set(found.runs) == {f"{point:03}-s{seed}" for point in (4, 5) for seed in (1, 2, 3)}


def test_early_signals_are_told_by_rank_over_runs() -> None:
    def runs(sign: int, count: int) -> StudyResults:
        made = [
            make_run(n, {"learning_rate": 1e-4 * n}, 1, 2 + 0.05 * n, early=-0.1 * n * sign, norm=1 + 0.1 * n * sign)
            for n in range(1, count + 1)
        ]
        return results_of(made, ("learning_rate",))

    holds = claim(runs(+1, 10), 8)
    assert (holds.verdict, holds.unit) == ("holds", "correlation")
    assert holds.effect > 0.9
    assert claim(runs(-1, 10), 8).verdict == "does not hold"
    few = claim(runs(+1, 4), 8)
    assert few.verdict == "cannot tell"  # four runs come in perfect order once in 24 times
    assert few.detectable > holds.detectable > 0.5


def test_presets_of_a_study_name_the_two_configurations() -> None:
    lab = {"preset": "lab", "effective_batch_size": 40}
    tulu = {"preset": "tulu", "effective_batch_size": 8, "lr_scheduler_type": "linear", "warmup_steps": 0.03}
    found = claim(study_of([lab, tulu], [1.8, 2.0]), 10)
    assert found.verdict == "holds"
    assert "LAB against TULU" in found.reason


def test_equal_layouts_say_how_far_their_losses_part() -> None:
    points = [{"max_tokens_per_device": 4096}, {"max_tokens_per_device": 512}]
    found = claim(study_of(points, [2.0, 2.0], spread=0.01), 9)
    assert found.verdict == "holds"
    assert "training losses of one step differ by" in found.reason
    # the number of processes is a layout, too
    runs = [make_run(1, {"weight_decay": 0.0}, seed, 2.0, processes=1 + seed) for seed in (0, 1)]
    assert "layout" in claim(results_of(runs), 9).reason


def test_shares_have_a_margin_of_one_point() -> None:
    def study(gap: float) -> StudyResults:
        runs = [
            make_run(n, {"warmup_steps": w}, seed, 0.5 + gap * (w > 0), spread=0.001)
            for n, w in enumerate((0, 25), 1)
            for seed in (1, 2)
        ]
        return results_of(runs, ("warmup_steps",), minimize=False)

    assert claim(study(0.005), 4).verdict == "holds"
    assert claim(study(0.05), 4).verdict == "does not hold"


def test_every_claim_is_there_with_the_papers_numbers() -> None:
    found = judge_claims(study_of([BASE], [2.0]))
    assert [one.number for one in found] == list(range(1, 11))
    assert all(one.claim and one.paper for one in found)


def test_seeds_of_a_setting_make_early_signals_no_surer() -> None:
    def study(seeds: int) -> StudyResults:
        runs = [
            make_run(n, {"learning_rate": 1e-4 * n}, seed, 2 + 0.05 * n, early=-0.1 * n, norm=1 + 0.1 * n)
            for n in range(1, 7)
            for seed in range(seeds)
        ]
        return results_of(runs, ("learning_rate",))

    # runs of a batch so large that the early window has no three steps are not among them
    large = make_run(7, {"learning_rate": 1e-4, "effective_batch_size": 500}, 0, 2.0)
    assert "007-s0" not in claim(results_of([*study(1).runs, large]), 8).runs
    one, three = claim(study(1), 8), claim(study(3), 8)
    assert three.high - three.low > 0.8 * (one.high - one.low)
    assert len(three.runs) == 18


def test_each_early_signal_names_the_runs_that_it_was_made_of() -> None:
    def of(point: int, batch: int) -> list[RunResult]:
        settings = {"learning_rate": 1e-4 * point, "effective_batch_size": batch}
        return [make_run(point, settings, seed, 2 + 0.05 * point, early=-0.1 * point, norm=point) for seed in (1, 2)]

    runs = [run for point in range(1, 7) for run in of(point, 8 if point % 2 else 16)]
    # norms of several batch sizes are compared without their noise, which two settings did not measure
    for point in (7, 8):
        for run in of(point, 8):
            unmeasured = dataclasses.replace(run.history, noise=tuple(math.nan for _ in run.history.noise))
            runs.append(dataclasses.replace(run, history=unmeasured))
    found = claim(results_of(runs, ("learning_rate",)), 8)
    assert "early loss +0.99 (claimed: +) over 8 settings, 16 runs" in found.reason
    assert "early gradient norm without noise -0.99 (claimed: −) over 6 settings, 12 runs" in found.reason
    assert "(its noise was not measured in 007-s1, 007-s2, 008-s1, 008-s2)" in found.reason
    assert len(found.runs) == 16


def test_few_questions_that_all_models_miss_tell_nothing() -> None:
    missed = {f"q{n}": (0.0, 1.0) for n in range(20)}
    for sides in SIDES.values():
        runs = [
            dataclasses.replace(
                make_run(point, settings, seed, 1.0),
                score=Point(2000, 0.0, 0.0, 0.16),
                evaluations=(Point(2000, 0.0, 0.0, 0.16),),
                items=missed,
            )
            for point, settings in enumerate(sides, start=1)
            for seed in (1, 2)
        ]
        claims = judge_claims(results_of(runs, tuple(sides[0]), minimize=False))
        compared = [one for one in claims if one.unit == "score"]
        assert compared
        assert {(one.verdict, one.effect) for one in compared} == {("cannot tell", 0.0)}
