from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from sengi.statistics.differences import (
    EXACT_FLIPS,
    holm,
    mcnemar_p,
    paired_difference,
    score_interval,
    sign_flip_p,
)
from sengi.statistics.intervals import bootstrap_interval, ratio_interval

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=120)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)
CHANGES = st.lists(st.integers(-5, 5), min_size=1, max_size=10)


def likelihood_score(n: int, gained: int, lost: int, difference: float) -> float:
    """Tango's statistic from its definition: the nuisance share is found by maximising the likelihood numerically."""

    def minus_log_likelihood(share_lost: float) -> float:
        cells = (share_lost + difference, share_lost, 1 - 2 * share_lost - difference)
        counts = (gained, lost, n - gained - lost)
        return -sum(k * math.log(max(p, 1e-300)) for k, p in zip(counts, cells, strict=True) if k)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    share = minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (gained - lost - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference)))


@pytest.mark.parametrize(("n", "gained", "lost"), [(50, 12, 2), (50, 0, 7), (200, 20, 25), (1_000, 31, 4)])
def test_the_score_interval_ends_where_the_score_test_rejects(n, gained, lost):
    # At both ends the statistic is the normal quantile, by the definition and not by the closed form.
    interval = score_interval(n, gained, lost)
    assert likelihood_score(n, gained, lost, interval.low) == pytest.approx(1.959964, abs=1e-4)
    assert likelihood_score(n, gained, lost, interval.high) == pytest.approx(-1.959964, abs=1e-4)


def test_score_interval_without_change_is_known():
    # Nothing changed: z^2 / (n + z^2) on both sides, as Wilson's interval of a share of zero.
    z = stats.norm.ppf(0.975)
    nothing = score_interval(30, 0, 0)
    assert (nothing.low, nothing.high) == pytest.approx((-z * z / (30 + z * z), z * z / (30 + z * z)))


@pytest.mark.parametrize(("n", "gained", "lost"), [(0, 0, 0), (5, 4, 2), (5, -1, 2)])
def test_score_interval_refuses_impossible_counts(n, gained, lost):
    with pytest.raises(ValueError, match=r"gained \+ lost <= n"):
        score_interval(n, gained, lost)


@given(PAIRS)
def test_paired_shares_mirror_and_stay_in_range(pairs):
    # Swapping before and after flips the sign of everything and leaves p alone.
    before, after = zip(*pairs, strict=True)
    there, back = paired_difference(before, after), paired_difference(after, before)
    assert there.method == "score"
    assert there.difference.value == pytest.approx(np.mean(after) - np.mean(before))
    assert -1 <= there.difference.low <= there.difference.value <= there.difference.high <= 1
    assert there.difference.low == pytest.approx(-back.difference.high, abs=1e-9)
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert there.p_value == back.p_value
    assert 0 <= there.p_value <= 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_two_sided_sign_test(gained, lost):
    # By counting in integers, and by scipy.
    total, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
    assert mcnemar_p(gained, lost) == pytest.approx(min(1.0, 2 * tail))
    if total:
        assert mcnemar_p(gained, lost) == pytest.approx(stats.binomtest(gained, total).pvalue)


def test_paired_all_wrong_to_all_right_keeps_a_width():
    # The demo's case: a bootstrap would claim certainty from 20 questions.
    result = paired_difference([0] * 20, [1] * 20).difference
    assert result.value == 1.0
    assert result.low < 0.9
    assert result.high == 1.0


def test_weighted_right_answers_that_did_not_change_keep_a_width():
    # A group averaged by tasks weighs its questions; the same answers twice do not prove equal models.
    right = [1, 0, 1, 1, 0, 1, 0, 0, 1, 1]
    result = paired_difference(right, right, weights=[1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    assert result.difference.low < -0.1 < 0.1 < result.difference.high
    assert (result.difference.value, result.difference.n, result.p_value) == (0.0, 10, 1.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_weighted_answers_that_all_changed_alike_keep_a_width(sign):
    before, after = ([0] * 10, [1] * 10)[::sign]
    found = paired_difference(before, after, weights=[1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    assert found.difference.value == sign
    assert abs(found.difference.high - found.difference.low) > 0.1
    assert -1 <= found.difference.low <= sign <= found.difference.high <= 1
    assert found.p_value == pytest.approx(2 * 0.5**10)


def test_paired_real_numbers_use_the_bootstrap_and_pairing_narrows_it():
    rng = np.random.default_rng(5)
    hardness = rng.normal(3, 1, 200)
    before, after = hardness + rng.normal(0, 0.1, 200), hardness - 0.5 + rng.normal(0, 0.1, 200)
    result = paired_difference(before, after)
    assert result.method == "bootstrap"
    assert result.p_value == pytest.approx(1 / 10_000)  # no drawn pattern of signs is as far
    assert result.difference.low < -0.5 + 0.05
    assert result.difference.high < 0
    unpaired = bootstrap_interval(after)
    assert result.difference.high - result.difference.low < 0.5 * (unpaired.high - unpaired.low)


def test_paired_with_weights_is_the_difference_of_the_weighted_means():
    rng = np.random.default_rng(6)
    before, weights = rng.normal(2, 0.5, 80), rng.integers(5, 500, 80)
    after = before - 0.1 + rng.normal(0, 0.05, 80)
    result = paired_difference(before, after, weights=weights)
    assert result.method == "ratio"
    assert result.difference == ratio_interval(after - before, weights)
    expected = np.average(after, weights=weights) - np.average(before, weights=weights)
    assert result.difference.value == pytest.approx(expected)


def test_paired_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match="before has 2 results, after 3"):
        paired_difference([0, 1], [0, 1, 1])


@given(CHANGES)
def test_sign_flips_are_counted_exactly(changes):
    # The definition: of all patterns of signs, the share whose sum is at least as far from zero.
    sums = [sum(s * c for s, c in zip(signs, changes, strict=True)) for signs in product((1, -1), repeat=len(changes))]
    expected = np.mean([abs(total) >= abs(sum(changes)) for total in sums])
    assert sign_flip_p(changes) == pytest.approx(expected)


@given(st.integers(0, 12), st.integers(0, 12))
def test_sign_flips_of_equal_changes_are_mcnemars_test(gained, lost):
    # Up to 20 exactly; above by drawing, within 4 standard errors of 10,000 draws.
    found, exact = sign_flip_p([1.0] * gained + [-1.0] * lost + [0.0]), mcnemar_p(gained, lost)
    slack = 1e-12 if gained + lost <= EXACT_FLIPS else 4 * math.sqrt(exact * (1 - exact) / 10_000) + 1e-4
    assert found == pytest.approx(exact, abs=slack)


def test_drawn_sign_flips_agree_with_the_t_test_and_are_never_zero():
    changes = np.random.default_rng(11).normal(0.15, 1, 200)
    assert sign_flip_p(changes) == pytest.approx(stats.ttest_1samp(changes, 0).pvalue, abs=0.02)
    assert sign_flip_p(np.full(100, 2.5)) == 1 / 10_000
    assert sign_flip_p(changes, seed=3) == sign_flip_p(changes, seed=3)


def test_sign_flips_reject_at_the_stated_rate():
    # Without a true difference p is below 0.05 in at most 5 of 100 comparisons, also for skewed, heavy changes.
    rng = np.random.default_rng(8)
    found = [sign_flip_p(rng.standard_t(2, 15) * rng.lognormal(0, 1)) for _ in range(1_000)]
    assert 0.03 <= np.mean(np.array(found) <= 0.05) <= 0.065


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        # As R's p.adjust(p, "holm") and statsmodels' multipletests(p, method="holm") define it, worked by hand.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.02], [0.02]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([], []),
    ],
)
def test_holm_known_examples(raw, adjusted):
    assert holm(raw) == pytest.approx(adjusted)


@given(P_VALUES)
def test_holm_never_lowers_p_keeps_their_order_and_lies_below_bonferroni(p_values):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, p * len(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


@given(P_VALUES, st.randoms())
def test_holm_does_not_depend_on_the_order(p_values, random):
    places = list(range(len(p_values)))
    random.shuffle(places)
    shuffled = holm([p_values[k] for k in places])
    assert shuffled == [holm(p_values)[k] for k in places]


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"p_values\[1\]=1.5"):
        holm([0.5, 1.5])
    with pytest.raises(ValueError, match=r"p_values\[0\]=nan"):
        holm([math.nan])
