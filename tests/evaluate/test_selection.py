from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.evaluate.selection import samples_to_peak, select_checkpoint


def test_equal_checkpoints_the_naive_best_is_biased_and_the_corrected_one_is_not():
    # 12 checkpoints of the same true score on 200 questions of different hardness, 300 times: whoever is picked, the
    # truth is 0.5.
    rng = np.random.default_rng(0)
    naive, corrected, swapped, covered = [], [], [], []
    for seed in range(300):
        hardness = rng.beta(2, 2, 200)
        results = rng.random((12, 200)) < hardness
        found = select_checkpoint(results, seed=seed)
        naive.append(found.naive.score.value)
        corrected.append(found.best.score.value)
        swapped.append(found.swapped.score.value)
        covered.append(found.best.score.low <= 0.5 <= found.best.score.high)
    assert np.mean(naive) > 0.5 + 0.03
    # Standard error of these means: sqrt(0.25 / 100 / 300) = 0.0029.
    assert abs(np.mean(corrected) - 0.5) < 0.01
    assert abs(np.mean(swapped) - 0.5) < 0.01
    assert np.mean(covered) >= 0.93


def test_a_clearly_best_checkpoint_is_chosen_by_all_ways():
    rng = np.random.default_rng(1)
    results = rng.random((5, 400)) < np.array([0.3, 0.4, 0.8, 0.5, 0.4])[:, None]
    found = select_checkpoint(results)
    assert (found.best.checkpoint, found.swapped.checkpoint, found.naive.checkpoint) == (2, 2, 2)
    assert (found.best.corrected, found.swapped.corrected, found.naive.corrected) == (True, True, False)
    assert (found.best.score.n, found.swapped.score.n, found.naive.score.n) == (200, 200, 400)
    # The two halves are all questions, each once.
    assert (found.best.score.value + found.swapped.score.value) / 2 == pytest.approx(found.naive.score.value)


def test_losses_are_weighted_and_the_lowest_is_best():
    # A checkpoint that is better on the few long conversations only has the lower loss a token.
    weights = np.where(np.arange(100) % 5 == 0, 1_000, 10)
    results = np.full((2, 100), 2.0)
    results[1] = np.where(weights > 10, 1.5, 2.4)
    found = select_checkpoint(results, weights=weights, higher_is_better=False)
    assert found.best.checkpoint == found.naive.checkpoint == 1
    assert found.naive.score.value == pytest.approx(np.average(results[1], weights=weights))
    assert select_checkpoint(results, higher_is_better=False).naive.checkpoint == 0


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(10, 40), st.integers(0, 5))
def test_the_same_seed_chooses_the_same_and_halves_differ_by_one_at_most(checkpoints, questions, seed):
    results = np.random.default_rng(seed).normal(0, 1, (checkpoints, questions))
    one, again = select_checkpoint(results, seed=seed), select_checkpoint(results, seed=seed)
    assert one == again
    assert one.best.score.n + one.swapped.score.n == questions
    assert 0 <= one.best.score.n - one.swapped.score.n <= 1


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([[1.0] * 9], "9 questions: need 10 or more"),
        ([1.0] * 20, "one row a checkpoint"),
        ([[1.0] * 10, [1.0] * 9 + [float("nan")]], r"results\[1, 9\] is not finite"),
    ],
)
def test_what_cannot_be_split_is_refused(results, words):
    with pytest.raises(ValueError, match=words):
        select_checkpoint(results)


def test_weights_must_fit():
    with pytest.raises(ValueError, match="3 weights for 10 values"):
        select_checkpoint(np.ones((2, 10)), weights=[1, 2, 3])


def test_samples_to_peak_is_the_earliest_best():
    # The paper's tables: samples seen at the checkpoint with the highest score.
    peak = samples_to_peak([250_000, 500_000, 750_000, 1_000_000], [0.50, 0.53, 0.53, 0.52])
    assert (peak.checkpoint, peak.samples) == (1, 500_000)
    assert (peak.within_noise, peak.samples_within_noise) == (None, None)
    assert samples_to_peak([10, 20, 30], [2.0, 1.5, 1.7], higher_is_better=False).samples == 20


def test_few_questions_show_no_checkpoint_to_be_worse():
    # Four marks have no interval: the first checkpoint is as good as the best, for all that they tell.
    peak = samples_to_peak([1, 2], [1.0, 3.0], results=[[0.5, 1.0, 1.5, 1.0], [2.5, 3.0, 3.5, 3.0]])
    assert (peak.checkpoint, peak.within_noise) == (1, 0)


def test_the_first_checkpoint_within_noise_of_the_best():
    # 0.2 is clearly below; 0.60, 0.61 and 0.62 differ by a question or two of 100.
    right = [20, 60, 61, 62]
    results = [[1] * k + [0] * (100 - k) for k in right]
    peak = samples_to_peak([1_000, 2_000, 3_000, 4_000], [k / 100 for k in right], results=results)
    assert (peak.checkpoint, peak.samples) == (3, 4_000)
    assert (peak.within_noise, peak.samples_within_noise) == (1, 2_000)


def test_the_first_is_by_samples_seen_whatever_the_order_of_the_rows():
    results = [[1] * 62 + [0] * 38, [1] * 61 + [0] * 39, [1] * 10 + [0] * 90]
    peak = samples_to_peak([300, 200, 100], [0.62, 0.61, 0.10], results=results)
    assert (peak.checkpoint, peak.within_noise, peak.samples_within_noise) == (0, 1, 200)


def test_peak_refuses_lists_that_do_not_fit():
    with pytest.raises(ValueError, match="2 numbers of samples for 3 scores"):
        samples_to_peak([1, 2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="results of 1 checkpoints for 2 scores"):
        samples_to_peak([1, 2], [0.1, 0.2], results=[[1, 0]])
