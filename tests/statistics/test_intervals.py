from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from sengi.statistics.intervals import (
    BCA_LIMIT,
    bootstrap_interval,
    mcnemar_p,
    paired_difference,
    wilson_interval,
)

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=120)


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


def test_bootstrap_covers_the_truth_at_the_stated_rate():
    # 95% intervals of 300 samples hold the true mean about 95 times in a hundred.
    rng = np.random.default_rng(2)
    intervals = [bootstrap_interval(rng.normal(1, 2, 60), resamples=400, seed=k) for k in range(300)]
    covered = np.mean([i.low <= 1 <= i.high for i in intervals])
    assert 0.90 <= covered <= 0.98


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50), st.integers(0, 3))
@example([0.0, 6.4662863676707724e-260], 0)
@example([0.0] * 49 + [1e-200], 0)
def test_bootstrap_same_seed_same_interval_inside_the_data(values, seed):
    one = bootstrap_interval(values, resamples=200, seed=seed)
    assert one == bootstrap_interval(values, resamples=200, seed=seed)
    slack = 1e-9 * max(1.0, max(map(abs, values)))
    assert min(values) - slack <= one.low <= one.high <= max(values) + slack


def test_bootstrap_of_many_values_is_percentile_and_bounded():
    # Above the limit BCa would need n^2 work; the percentile interval still covers the mean.
    values = np.random.default_rng(3).normal(0, 1, BCA_LIMIT + 1)
    interval = bootstrap_interval(values, resamples=500)
    assert interval.low < interval.value < interval.high
    assert interval.n == BCA_LIMIT + 1


def test_bootstrap_edges():
    # One value cannot tell its spread; equal values have none; nothing and NaN are errors that say so.
    single = bootstrap_interval([3.0])
    assert single.value == 3.0
    assert math.isnan(single.low)
    assert math.isnan(single.high)
    equal = bootstrap_interval([2.0, 2.0, 2.0])
    assert (equal.low, equal.high) == (2.0, 2.0)
    with pytest.raises(ValueError, match="at least one number"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match=r"values\[1\] is not finite"):
        bootstrap_interval([1.0, math.nan])


def test_paired_known_example():
    # Newcombe 1998, table II, cells 36, 12, 2, 0: difference 0.2, method 10 gives 0.0569 to 0.3404.
    before = [1] * 36 + [0] * 12 + [1] * 2
    after = [1] * 36 + [1] * 12 + [0] * 2
    result = paired_difference(before, after)
    assert result.method == "newcombe"
    assert result.difference.value == pytest.approx(0.2)
    assert (result.difference.low, result.difference.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert (result.gained, result.lost) == (12, 2)
    # 2 x P(X <= 2), X ~ B(14, 1/2), in integers.
    assert result.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)


@given(PAIRS)
def test_paired_shares_mirror_and_stay_in_range(pairs):
    # Swapping before and after flips the sign of everything and leaves p alone.
    before, after = zip(*pairs, strict=True)
    there, back = paired_difference(before, after), paired_difference(after, before)
    assert there.difference.value == pytest.approx(np.mean(after) - np.mean(before))
    assert -1 <= there.difference.low <= there.difference.value <= there.difference.high <= 1
    assert there.difference.low == pytest.approx(-back.difference.high, abs=1e-12)
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert there.p_value == back.p_value
    assert 0 <= there.p_value <= 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_two_sided_sign_test(gained, lost):
    total, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
    assert mcnemar_p(gained, lost) == pytest.approx(min(1.0, 2 * tail))


def test_paired_all_wrong_to_all_right_keeps_a_width():
    # The demo's case: a bootstrap would claim certainty from 20 questions.
    result = paired_difference([0] * 20, [1] * 20).difference
    assert result.value == 1.0
    assert result.low < 0.9
    assert result.high == 1.0


def test_paired_interval_covers_the_true_difference():
    # True shares 0.5 and 0.7 with dependence: about 95 in a hundred intervals hold 0.2.
    rng = np.random.default_rng(4)
    before = rng.random((500, 80)) < 0.5
    after = np.where(before, rng.random((500, 80)) < 0.9, rng.random((500, 80)) < 0.5)
    found = [paired_difference(b, a).difference for b, a in zip(before, after, strict=True)]
    assert 0.92 <= np.mean([i.low <= 0.2 <= i.high for i in found]) <= 0.99


def test_paired_real_numbers_use_the_bootstrap_and_pairing_narrows_it():
    rng = np.random.default_rng(5)
    hardness = rng.normal(3, 1, 200)
    before, after = hardness + rng.normal(0, 0.1, 200), hardness - 0.5 + rng.normal(0, 0.1, 200)
    result = paired_difference(before, after)
    assert (result.method, result.p_value) == ("bootstrap", None)
    assert result.difference.low < -0.5 + 0.05
    assert result.difference.high < 0
    unpaired = bootstrap_interval(after)
    assert result.difference.high - result.difference.low < 0.5 * (unpaired.high - unpaired.low)


def test_paired_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match="before has 2 results, after 3"):
        paired_difference([0, 1], [0, 1, 1])
