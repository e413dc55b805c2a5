"""The printed 95% intervals hold the true value 93 to 97 times in a hundred, in the settings users meet.

Vectorised simulations with fixed seeds: many sets of results are drawn from a known truth, and the share of intervals
that hold it is counted. Where results are whole counts the interval is computed once for each different count.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sengi.statistics.differences import score_interval
from sengi.statistics.intervals import FEWEST_DRAWN, _bootstrap_ends, _ratio_ends, wilson_interval

DRAWS = 4_000
wilson = functools.cache(wilson_interval)


@pytest.mark.parametrize("n", [50, 200, 500, 2_000])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
def test_wilson(n, share):
    # No simulation needed: the chance of each count is known. 50 questions at 0.1 or 0.9 are covered at 97.03%.
    counts = np.arange(n + 1)
    holds = [wilson(k, n).low <= share <= wilson(k, n).high for k in counts.tolist()]
    covered = float(stats.binom.pmf(counts, n, share)[holds].sum())
    assert 0.93 <= covered <= 0.9705


@pytest.mark.parametrize(
    ("n", "right_before", "changed", "difference"),
    [
        (50, 0.5, 0.2, 0.0),
        (50, 0.3, 0.2, 0.1),
        (50, 0.1, 0.2, 0.1),
        (200, 0.5, 0.05, 0.03),
        (200, 0.9, 0.1, -0.03),
        (500, 0.3, 0.2, 0.1),
        (500, 0.1, 0.05, 0.0),
        (2_000, 0.5, 0.2, 0.03),
        (2_000, 0.9, 0.05, 0.0),
    ],
)
def test_paired_shares(n, right_before, changed, difference):
    # The share that was right before is drawn too: the interval does not depend on it.
    gained, lost = (changed + difference) / 2, (changed - difference) / 2
    rng = np.random.default_rng(n)
    cells = rng.multinomial(n, [right_before - lost, lost, gained, 1 - right_before - gained], size=DRAWS)
    kinds, times = np.unique(cells[:, [2, 1]], axis=0, return_counts=True)
    found = [score_interval(n, g, b) for g, b in kinds.tolist()]
    covered = sum(k for i, k in zip(found, times, strict=True) if i.low <= difference <= i.high) / DRAWS
    assert 0.93 <= covered <= 0.97


def test_paired_shares_with_too_few_changes_are_covered_more_often_not_less():
    # What the docstring says: 2.5 changes among 50 questions.
    cells = np.random.default_rng(3).multinomial(50, [0.025, 0.025, 0.95], size=DRAWS)
    score = functools.cache(score_interval)
    covered = np.mean([score(50, g, b).low <= 0 <= score(50, g, b).high for g, b, _ in cells.tolist()])
    assert 0.97 <= covered <= 0.995


def marks(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Judge's marks, 1 to 10, with equal chances."""
    return rng.integers(1, 11, shape).astype(np.float64)


MEANS = {
    "normal": (lambda rng, shape: rng.normal(1, 2, shape), 1.0),
    "mc2": (lambda rng, shape: rng.beta(0.4, 0.6, shape), 0.4),
    "mt_bench": (marks, 5.5),
    "exponential": (lambda rng, shape: rng.exponential(1, shape), 1.0),
    "paired change of marks": (lambda rng, shape: marks(rng, shape) - marks(rng, shape) + 0.3, 0.3),
}


@pytest.mark.parametrize("n", [50, 80, 200])
@pytest.mark.parametrize("kind", MEANS)
def test_bootstrap(n, kind):
    # Of the mean of values, and of paired differences, which are values too; 1,000 resamples shared by all columns.
    draw, truth = MEANS[kind]
    columns = draw(np.random.default_rng(n), (n, DRAWS))
    low, high = _bootstrap_ends(columns, 0.95, 1_000, seed=1)
    assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.97


def test_bootstrap_of_the_fewest_values():
    # Fewer than these have no interval: of 4 normal values it would cover 86%, of 3 71%, of 2 52%.
    for n, least in ((FEWEST_DRAWN, 0.9), (8, 0.93)):
        columns = np.random.default_rng(n).normal(0, 1, (n, DRAWS))
        low, high = _bootstrap_ends(columns, 0.95, 1_000, seed=1)
        assert least <= np.mean((low <= 0) & (high >= 0)) <= 0.97


def test_bootstrap_of_many_values():
    columns = np.random.default_rng(4).beta(0.4, 0.6, (2_000, 1_000))
    low, high = _bootstrap_ends(columns, 0.95, 1_000, seed=1)
    assert 0.93 <= np.mean((low <= 0.4) & (high >= 0.4)) <= 0.97


@pytest.mark.parametrize("n", [50, 200, 1_000])
@pytest.mark.parametrize("spread_of_lengths", [0.5, 1.0])
def test_ratio_of_heldout_loss(n, spread_of_lengths):
    # Losses a token that fall with the length of the conversation, so that long ones pull the ratio.
    rng = np.random.default_rng(n)

    def draw(shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        tokens = np.ceil(rng.lognormal(4, spread_of_lengths, shape))
        return rng.gamma(4, 0.5, shape) * tokens**-0.2, tokens

    losses, tokens = draw((2_000_000,))
    truth = float(np.average(losses, weights=tokens))
    low, high = _ratio_ends(*draw((n, DRAWS)), 0.95)
    assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.97


@pytest.mark.parametrize("n", [50, 500])
def test_ratio_of_paired_losses(n):
    # The change of the loss of each conversation between two checkpoints.
    rng = np.random.default_rng(n)
    low, high = _ratio_ends(rng.normal(-0.02, 0.1, (n, DRAWS)), np.ceil(rng.lognormal(4, 0.8, (n, DRAWS))), 0.95)
    assert 0.93 <= np.mean((low <= -0.02) & (high >= -0.02)) <= 0.97
