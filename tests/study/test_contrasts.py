"""The one estimate behind ranking and claims: it covers the truth, and says what it does not know."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.study.contrasts import Trained, average, contrast, seed_spread

QUESTIONS = 60


def trained(name: str, seed: int, quality: float, values: np.ndarray | None = None, block: str = "") -> Trained:
    items = {} if values is None else {f"q{n}": (float(v), 1.0 + n % 3) for n, v in enumerate(values)}
    return Trained(name, block, seed, quality, items)


def simulated(rng: np.random.Generator, effect: float, seeds: int) -> tuple[list[Trained], list[Trained]]:
    """Two settings; chance of questions (also in how far the settings differ) and of seeds, both as in real studies."""
    weights = np.array([1.0 + n % 3 for n in range(QUESTIONS)])
    hard, tilt = rng.standard_normal(QUESTIONS), 0.1 * rng.standard_normal(QUESTIONS)
    sides: list[list[Trained]] = []
    for side in (0, 1):
        runs = []
        for seed in range(seeds):
            own = 0.02 * rng.standard_normal() + 0.05 * rng.standard_normal(QUESTIONS)
            values = hard + side * (effect + tilt) + own
            runs.append(trained(f"{side}-s{seed}", seed, float(np.average(values, weights=weights)), values))
        sides.append(runs)
    return sides[0], sides[1]


def test_intervals_cover_the_true_difference_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered, found, null = 0, 0, 0
    for _ in range(300):
        first, second = simulated(rng, 0.05, seeds=3)
        spread = seed_spread({0: [r.quality for r in first], 1: [r.quality for r in second]})
        got = contrast(first, second, spread)
        assert got is not None
        covered += got.low <= 0.05 <= got.high
        found += got.p_value < 0.05
        null += got.detectable < 0.05
    # the interaction of seeds and questions counts twice: rather too wide than too narrow
    assert 0.93 <= covered / 300 <= 0.995
    assert found > 0.15 * 300
    assert null < 300


def test_an_effect_of_the_detectable_size_is_found_about_4_times_in_5() -> None:
    rng = np.random.default_rng(1)
    first, second = simulated(rng, 0.0, seeds=4)
    spread = seed_spread({0: [r.quality for r in first], 1: [r.quality for r in second]})
    one = contrast(first, second, spread)
    assert one is not None
    found = 0
    for _ in range(200):
        pair = simulated(rng, one.detectable, seeds=4)
        told = seed_spread({n: [r.quality for r in side] for n, side in enumerate(pair)})
        got = contrast(*pair, told)
        assert got is not None
        found += got.low > 0
    assert 0.6 < found / 200 < 0.98


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.permutations(range(6)))
def test_order_does_not_matter_and_sides_mirror(number: int, seeds: int, order: list[int]) -> None:
    first, second = simulated(np.random.default_rng(number), 0.1, seeds)
    spread = seed_spread({0: [r.quality for r in first], 1: [r.quality for r in second]})
    got = contrast(first, second, spread)
    shuffled = [first[k] for k in order if k < len(first)]
    assert contrast(shuffled, second[::-1], spread) == got
    back = contrast(second, first, spread)
    assert got is not None
    assert back is not None
    assert back.value == pytest.approx(-got.value)
    assert (back.low, back.high) == pytest.approx((-got.high, -got.low), rel=0.05, abs=1e-3)
    assert got.low < got.value < got.high


def test_blocks_are_compared_within_and_averaged_over() -> None:
    # a block that only one side has says nothing
    first = [trained("a", 1, 1.0, block="x"), trained("b", 1, 2.0, block="y"), trained("c", 1, 9.0, block="z")]
    second = [trained("d", 1, 1.5, block="x"), trained("e", 1, 2.7, block="y")]
    got = contrast(first, second, None)
    assert got is not None
    assert got.value == pytest.approx(0.6)
    assert got.blocks == pytest.approx({"x": 0.5, "y": 0.7})
    assert got.runs == ("a", "b", "d", "e")
    assert got.chance == ("other settings",)
    assert got.low < 0 < got.high  # two blocks are few


def test_seeds_that_both_have_are_compared_where_there_are_any() -> None:
    first = [trained("a", 1, 1.0), trained("b", 2, 5.0)]
    second = [trained("c", 1, 2.0), trained("d", 3, 9.0)]
    got = contrast(first, second, None)
    assert got is not None
    assert got.runs == ("a", "c")
    other = contrast(first, [trained("d", 3, 9.0)], None)
    assert other is not None
    assert other.value == pytest.approx(6.0)


def test_what_is_not_known_is_said() -> None:
    one, other = trained("a", 1, 1.0), trained("b", 1, 2.0)
    unsure = contrast([one], [other], None)
    assert unsure is not None
    assert not unsure.sure
    assert math.isnan(unsure.detectable)
    assert unsure.chance == ()
    assert contrast([one], [trained("c", 1, 2.0, block="elsewhere")], None) is None
    assert contrast([], [other], None) is None
    assert seed_spread({1: [1.0], 2: [2.0]}) is None


def test_two_runs_of_right_and_wrong_answers_are_compared_as_by_sengi_compare() -> None:
    before, after = np.zeros(40), np.r_[np.ones(12), np.zeros(28)]
    sides = [Trained(n, "", 1, float(v.mean()), {f"q{k}": (float(x), 1.0) for k, x in enumerate(v)}) for n, v in
             (("a", before), ("b", after))]  # fmt: skip
    got = contrast(sides[:1], sides[1:], None)
    assert got is not None
    assert got.chance == ("questions",)
    assert got.value == pytest.approx(0.3)
    assert got.p_value == pytest.approx(2 * 0.5**12)
    assert 0 < got.low < 0.3 < got.high < 0.5
    same = contrast(sides[:1], [Trained("c", "", 1, 0.0, sides[0].items)], None)
    assert same is not None
    assert same.low < 0 < same.high  # no change among forty questions proves no equality


def test_identical_models_differ_by_nothing() -> None:
    values = np.random.default_rng(2).standard_normal(QUESTIONS)
    first, second = ([trained(f"{side}{s}", s, 1.0, values) for s in (1, 2)] for side in "ab")
    got = contrast(first, second, seed_spread({0: [1.0, 1.0]}))
    assert got is not None
    assert (got.value, got.low, got.high, got.p_value, got.detectable) == (0, 0, 0, 1, 0)


# A coarse score is easily the same for two seeds; that makes no difference between settings certain.
def test_seeds_with_equal_scores_make_nothing_certain() -> None:
    first, second = ([trained(f"{value}{seed}", seed, value) for seed in (1, 2)] for value in (0.0, 0.5))
    got = contrast(first, second, seed_spread({0: [0.0, 0.0], 1: [0.5, 0.5]}))
    assert got is not None
    assert got.value == 0.5
    assert not got.sure
    assert math.isnan(got.p_value)


def test_the_mean_of_a_setting_has_an_interval_of_the_same_kinds() -> None:
    first, _ = simulated(np.random.default_rng(3), 0.0, seeds=3)
    spread = seed_spread({0: [run.quality for run in first]})
    got = average(first, spread)
    assert got.low < got.value < got.high
    narrow = average([trained("a", 1, 1.0)], spread)
    assert narrow.high - narrow.low < got.high - got.low  # without single results only the seeds count
    assert math.isnan(average([trained("a", 1, 1.0)], None).low)


def right(name: str, block: str, seed: int, answers: list[int], sign: int = 1, apart: int = 0) -> Trained:
    items = {f"q{n}": (float(sign * a), 1.0 + apart * (n % 3)) for n, a in enumerate(answers)}
    return Trained(name, block, seed, sign * float(np.mean(answers)), items)


def sides_of(before: int, after: int, seeds: int, blocks: int, sign: int = 1, apart: int = 0) -> list[list[Trained]]:
    """Two settings of which every run answers all of twenty questions alike."""
    return [
        [right(f"{n}{b}{s}", str(b), s, [a] * 20, sign, apart) for b in range(blocks) for s in range(seeds)]
        for n, a in enumerate((before, after))
    ]


@pytest.mark.parametrize("apart", [0, 1])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("seeds", "blocks"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("answer", [0, 1])
def test_the_same_answers_to_few_questions_prove_no_equality(
    answer: int, seeds: int, blocks: int, sign: int, apart: int
) -> None:
    sides = sides_of(answer, answer, seeds, blocks, sign, apart)
    spread = seed_spread({0: [run.quality for run in sides[0]]}) if seeds > 1 else None
    got = contrast(*sides, spread)
    assert got is not None
    assert (got.value, got.p_value) == (0, 1)
    assert got.low < -0.1
    assert got.high > 0.1
    assert not got.detectable < 0.1  # two runs without any change cannot say
    # a hundred times as many questions tell ten times as much and more
    many = [[Trained(r.name, r.block, r.seed, r.quality, {f"{k}{q}": v for k in range(100) for q, v in r.items.items()})
             for r in side] for side in sides]  # fmt: skip
    sure = contrast(*many, spread)
    assert sure is not None
    assert sure.high < got.high / 10


@pytest.mark.parametrize("apart", [0, 1])
@pytest.mark.parametrize(("seeds", "blocks"), [(1, 1), (2, 1), (3, 2)])
def test_the_same_change_of_few_questions_is_no_certainty(seeds: int, blocks: int, apart: int) -> None:
    sides = sides_of(0, 1, seeds, blocks, apart=apart)
    spread = seed_spread({0: [run.quality for run in sides[0]]}) if seeds > 1 else None
    got = contrast(*sides, spread)
    assert got is not None
    assert got.value == 1
    assert 0.5 < got.low < 0.9
    assert 0 < got.p_value < 1e-3


def test_one_answer_that_differs_makes_nothing_surer() -> None:
    same, other = sides_of(0, 0, 3, 1)
    changed = [*other[:2], right("102", "0", 2, [1] + [0] * 19)]
    equal, nearly = (contrast(same, side, seed_spread({0: [0.0, 0.0, 0.0]})) for side in (other, changed))
    assert equal is not None
    assert nearly is not None
    assert nearly.high - nearly.low >= equal.high - equal.low
