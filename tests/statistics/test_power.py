from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.statistics.differences import mcnemar_p, sign_flip_p
from sengi.statistics.power import minimal_detectable_difference


@pytest.mark.parametrize(("n", "discordant"), [(50, 0.4), (200, 0.2), (1_000, 0.1)])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 10])
def test_mcnemars_test_finds_that_difference_four_times_in_five(n, discordant, alpha):
    # By simulation with the test itself: 3,000 comparisons whose true difference is the answer.
    difference = minimal_detectable_difference(n, discordant=discordant, alpha=alpha)
    gained, lost = (discordant + difference) / 2, (discordant - difference) / 2
    cells = np.random.default_rng(1).multinomial(n, [gained, lost, 1 - discordant], size=3_000)
    kinds, times = np.unique(cells[:, :2], axis=0, return_counts=True)
    found = sum(k for (g, b), k in zip(kinds.tolist(), times, strict=True) if mcnemar_p(g, b) <= alpha)
    assert found / 3_000 == pytest.approx(0.8, abs=0.025)


def test_sign_flips_find_the_difference_of_real_numbers_four_times_in_five():
    difference = minimal_detectable_difference(40, sd=2.0)
    rng = np.random.default_rng(2)
    found = [sign_flip_p(rng.normal(difference, 2.0, 40)) <= 0.05 for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_known_value_of_real_numbers():
    # (1.95996 + 0.84162) x sd / sqrt(n)
    assert minimal_detectable_difference(100, sd=1.0) == pytest.approx(0.280158, abs=1e-6)
    # A test of power below one half: the second quantile is negative.
    assert minimal_detectable_difference(100, sd=1.0, power=0.3) == pytest.approx(0.143556, abs=1e-6)
    assert minimal_detectable_difference(100, sd=1.0, power=0.5) == pytest.approx(0.195996, abs=1e-6)


@settings(max_examples=15)
@given(st.integers(60, 1_000), st.floats(0.15, 0.9))
def test_more_questions_and_a_milder_level_find_less(n, discordant):
    base = minimal_detectable_difference(n, discordant=discordant)
    assert 0 < base <= discordant
    assert minimal_detectable_difference(4 * n, discordant=discordant) < base
    assert minimal_detectable_difference(n, discordant=discordant, alpha=0.2) < base
    assert minimal_detectable_difference(n, discordant=discordant, power=0.5) < base


def test_too_few_changes_to_find_anything_is_nan():
    # Five changes in one direction have p = 0.0625: no difference of 20 questions with two changes can be found.
    assert math.isnan(minimal_detectable_difference(20, discordant=0.1))
    assert math.isnan(minimal_detectable_difference(20, discordant=0.0))
    assert math.isnan(minimal_detectable_difference(20, sd=0.0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give one of discordant"),
        ({"discordant": 0.1, "sd": 1.0}, "give one of discordant"),
        ({"discordant": 1.5}, "a share from 0 to 1"),
        ({"sd": -1.0}, "need 0 or more"),
        ({"sd": 1.0, "power": 1.0}, "between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        minimal_detectable_difference(10, **arguments)
