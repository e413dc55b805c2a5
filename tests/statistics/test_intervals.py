from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from sengi.statistics.intervals import (
    FEWEST_DRAWN,
    bootstrap_interval,
    mean_square_interval,
    ratio_error,
    ratio_interval,
    wilson_interval,
)

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy(counts, confidence):
    # The closed form is the one scipy computes.
    successes, n = counts
    ours = wilson_interval(successes, n, confidence)
    theirs = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)


@given(COUNTS)
def test_wilson_holds_its_value_stays_in_range_and_mirrors(counts):
    # 0 <= low <= value <= high <= 1, and counting the wrong answers mirrors the interval.
    successes, n = counts
    right, wrong = wilson_interval(successes, n), wilson_interval(n - successes, n)
    assert 0 <= right.low <= right.value <= right.high <= 1
    assert (right.low, right.high) == pytest.approx((1 - wrong.high, 1 - wrong.low), abs=1e-12)


def test_wilson_known_value_and_width_at_the_ends():
    # 0 of 10: z^2 / (n + z^2); a share of zero still has an upper end.
    z = stats.norm.ppf(0.975)
    nothing = wilson_interval(0, 10)
    assert (nothing.value, nothing.low, nothing.n) == (0.0, 0.0, 10)
    assert nothing.high == pytest.approx(z * z / (10 + z * z))
    assert wilson_interval(10, 10).high == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match=r"for example 0\.95"):
        wilson_interval(1, 2, confidence)
    with pytest.raises(ValueError, match=r"for example 0\.95"):
        bootstrap_interval([1.0, 2.0], confidence)


def test_bootstrap_of_normal_values_is_close_to_the_t_interval():
    values = np.random.default_rng(1).normal(5, 2, 400)
    ours = bootstrap_interval(values)
    theirs = stats.t.interval(0.95, 399, loc=values.mean(), scale=stats.sem(values))
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=0.05 * (theirs[1] - theirs[0]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=FEWEST_DRAWN, max_size=50), st.integers(0, 3))
@example([0.0] * 4 + [6.4662863676707724e-260], 0)
@example([0.0] * 49 + [1e-200], 0)
def test_bootstrap_same_seed_same_interval_inside_the_data(values, seed):
    one = bootstrap_interval(values, resamples=200, seed=seed)
    assert one == bootstrap_interval(values, resamples=200, seed=seed)
    slack = 1e-9 * max(1.0, max(map(abs, values)))
    assert min(values) - slack <= one.low <= one.high <= max(values) + slack


def test_bootstrap_equals_scipys_bca_up_to_the_widened_levels():
    # Same draws by other means: at n = 400 the levels move outwards by less than 0.4% of the width.
    values = np.random.default_rng(6).gamma(1.0, 2.0, 400)
    ours = bootstrap_interval(values, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, batch=500, method="BCa", rng=7).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=0.03 * (theirs[1] - theirs[0]))


def test_bootstrap_of_few_distinct_values_draws_the_same_distribution():
    # Marks of 1 to 10 are drawn by counts, the same marks with a trace of noise one by one.
    marks = np.random.default_rng(8).integers(1, 11, 300).astype(float)
    by_counts = bootstrap_interval(marks, resamples=20_000)
    one_by_one = bootstrap_interval(marks + np.linspace(0, 1e-9, 300), resamples=20_000)
    width = by_counts.high - by_counts.low
    assert (by_counts.low, by_counts.high) == pytest.approx((one_by_one.low, one_by_one.high), abs=0.03 * width)


def test_bootstrap_of_many_values_is_quick_and_bounded():
    # As many values as MMLU has questions: draws come in batches, not in one array of 28 million.
    values = np.random.default_rng(3).normal(0, 1, 14_042)
    interval = bootstrap_interval(values, resamples=500)
    standard_error = 1 / math.sqrt(14_042)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    assert interval.n == 14_042


def test_bootstrap_edges():
    # Few values cannot tell their spread; equal values have none; nothing and NaN are errors that say so.
    for few in ([3.0], [2.0, 4.0], [2.0, 2.0, 5.0], [3.0] * 4):
        interval = bootstrap_interval(few)
        assert (interval.value, interval.n) == (3.0, len(few))
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
    equal = bootstrap_interval([2.0] * 5)
    assert (equal.low, equal.high) == (2.0, 2.0)
    five = bootstrap_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert 1 < five.low < 3 < five.high < 5
    with pytest.raises(ValueError, match="at least one number"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match=r"values\[1\] is not finite"):
        bootstrap_interval([1.0, math.nan])


WEIGHTED = st.lists(st.tuples(st.floats(-100, 100), st.floats(0.1, 1_000)), min_size=2, max_size=40)


@given(WEIGHTED, st.floats(0.01, 100))
def test_ratio_is_the_weighted_mean_and_only_proportions_of_weights_count(pairs, factor):
    values, weights = map(np.array, zip(*pairs, strict=True))
    one, scaled = ratio_interval(values, weights), ratio_interval(values, weights * factor)
    assert one.value == pytest.approx(np.average(values, weights=weights), abs=1e-9)
    assert one.low <= one.value <= one.high
    assert (one.low, one.high) == pytest.approx((scaled.low, scaled.high), rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=40))
def test_ratio_with_equal_weights_is_the_t_interval(values):
    interval = ratio_interval(values, np.full(len(values), 3.0))
    reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    assert interval.high - interval.value == pytest.approx(reach, abs=1e-6)


def test_ratio_error_is_the_jackknife_by_its_definition():
    rng = np.random.default_rng(9)
    values, weights = rng.normal(2, 1, 12), rng.integers(1, 50, 12).astype(float)
    without = [np.average(np.delete(values, k), weights=np.delete(weights, k)) for k in range(12)]
    expected = math.sqrt(11 / 12 * np.sum((without - np.average(values, weights=weights)) ** 2))
    assert ratio_error(values, weights) == pytest.approx(expected)


def test_a_few_heavy_values_make_the_ratio_less_sure():
    # Five texts that hold nearly all tokens tell as much as five texts, not as fifty.
    values = np.random.default_rng(10).normal(2, 1, 50)
    even, heavy = ratio_interval(values, np.ones(50)), ratio_interval(values, np.where(np.arange(50) < 5, 1e4, 1.0))
    assert heavy.high - heavy.low > 2 * (even.high - even.low)


def test_ratio_edges():
    single = ratio_interval([3.0], [10])
    assert single.value == 3.0
    assert math.isnan(single.low)
    with pytest.raises(ValueError, match="2 weights for 3 values"):
        ratio_interval([1.0, 2.0, 3.0], [1, 2])
    with pytest.raises(ValueError, match=r"weights\[1\] is not positive"):
        ratio_interval([1.0, 2.0], [1, 0])


@pytest.mark.parametrize("n", [16, 80])
@pytest.mark.parametrize("deviation", [0.5, 1.0])
def test_coverage_of_a_mean_of_squares(n: int, deviation: float) -> None:
    # Differences of two marks, whole numbers, as a judge gives them when it is asked twice.
    rng = np.random.default_rng(0)
    truth = rng.uniform(3, 9, 100_000)
    first, second = (np.round(truth + deviation * rng.standard_normal(len(truth))) for _ in range(2))
    expected = float(((first - second) ** 2).mean())
    drawn = rng.choice(first - second, (2_000, n))
    found = [mean_square_interval(row) for row in drawn]
    covered = np.mean([one.low <= expected <= one.high for one in found])
    assert 0.935 <= covered <= 0.985


def test_a_mean_of_squares_by_hand() -> None:
    # 2 and -2 do not vary in their squares: chi-square of two degrees of freedom, quantiles 0.0506 and 7.378
    found = mean_square_interval([2.0, -2.0])
    assert (found.value, found.n) == (4.0, 2)
    assert (found.low, found.high) == pytest.approx((8 / 7.377759, 8 / 0.05063562), rel=1e-5)
    for values in ([3.0], [0.0, 0.0, 0.0]):
        assert math.isnan(mean_square_interval(values).low)
    # one large value among many: less is known than n says
    assert mean_square_interval([0.0] * 9 + [3.0]).high > mean_square_interval([0.9486833] * 10).high
