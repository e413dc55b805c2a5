"""Rows of scores: intervals that hold what they promise, groups as lm-eval aggregates them, nothing scored silently."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sengi.harness.intervals import Stratum, group_interval, metric_interval, stratum
from sengi.harness.lm_eval_tasks import mean
from sengi.harness.scores import _higher_is_better, labels, question_values
from sengi.statistics.intervals import wilson_interval

SIMULATIONS = 700


def exact_coverage(n: int, share: float) -> float:
    """Coverage of the interval of an accuracy, over all outcomes of n questions."""
    covered = 0.0
    for right in range(n + 1):
        interval = metric_interval("acc", [1] * right + [0] * (n - right), mean, right / n)
        if interval.low <= share <= interval.high:
            covered += math.comb(n, right) * share**right * (1 - share) ** (n - right)
    return covered


@pytest.mark.parametrize("n", [50, 500])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_coverage_of_accuracies(n: int, share: float) -> None:
    # The printed 95% intervals hold the true accuracy in 93% to 97% of evaluations: computed, not simulated. In whole
    # percents, since the coverage of shares goes in steps: Wilson's at n = 50, p = 0.1 is 0.9703.
    assert 0.93 <= round(exact_coverage(n, share), 2) <= 0.97


@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize("shares", [[0.1] * 5, [0.5] * 5, [0.9] * 5, [0.1, 0.3, 0.5, 0.7, 0.9]])
def test_coverage_of_groups(shares: list[float], by_size: bool) -> None:
    # Five tasks of unequal size and ability, weighted as lm-eval weighs them.
    rng = np.random.default_rng(0)
    sizes = np.array([40, 60, 100, 150, 250])
    weights = sizes / sizes.sum() if by_size else np.full(5, 0.2)
    truth = float(weights @ shares)
    covered = 0
    for right in rng.binomial(sizes, shares, (SIMULATIONS, 5)):
        found = []
        for ok, n in zip(right, sizes, strict=True):
            found.append(stratum("acc", [1] * ok + [0] * (n - ok), mean, ok / n))
        interval = group_interval(found, weights.tolist(), float(weights @ (right / sizes)))
        covered += interval.low <= truth <= interval.high
    assert 0.93 <= covered / SIMULATIONS <= 0.97


@pytest.mark.parametrize("n", [50, 150])
def test_coverage_of_continuous_scores(n: int) -> None:
    # truthfulqa_mc2 gives each question the probability of its right answers: a mean of numbers between 0 and 1.
    rng = np.random.default_rng(n)
    covered = 0
    for _ in range(400):
        values = rng.beta(0.7, 1.2, n)
        interval = metric_interval("acc", values.tolist(), mean, float(values.mean()))
        covered += interval.low <= 0.7 / 1.9 <= interval.high
    assert 0.93 <= covered / 400 <= 0.97


def test_coverage_of_groups_of_continuous_scores() -> None:
    rng = np.random.default_rng(3)
    sizes = (12, 30, 60, 80, 120)
    weights = [0.2] * 5
    covered = 0
    for _ in range(SIMULATIONS):
        samples = [rng.beta(0.7, 1.2, n) for n in sizes]
        found = [stratum("acc", values.tolist(), mean, float(values.mean())) for values in samples]
        interval = group_interval(found, weights, float(np.mean([values.mean() for values in samples])))
        covered += interval.low <= 0.7 / 1.9 <= interval.high
    assert 0.93 <= covered / SIMULATIONS <= 0.97


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_group_of_one_task_is_near_the_task(values: list[bool]) -> None:
    # The same questions, once as a task and once as a group: the group's interval is a little wider, never narrower.
    value = sum(values) / len(values)
    alone = metric_interval("acc", values, mean, value)
    group = group_interval([stratum("acc", values, mean, value)], [1.0], value)
    assert group.n == alone.n == len(values)
    assert group.low <= value <= group.high
    assert group.high - group.low >= (alone.high - alone.low) * (1 - 1e-9)
    assert group.high - group.low <= (alone.high - alone.low) * 1.3


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=8))
def test_interval_of_a_group_holds_its_score(tasks: list[tuple[int, float]]) -> None:
    right = [(n, round(n * share)) for n, share in tasks]
    found = [stratum("acc", [1] * ok + [0] * (n - ok), mean, ok / n) for n, ok in right]
    total = sum(n for n, _ in right)
    value = sum(ok for _, ok in right) / total
    interval = group_interval(found, [n / total for n, _ in right], value)
    assert 0 <= interval.low <= value + 1e-12
    assert value - 1e-12 <= interval.high <= 1


def test_shares_are_wilsons_and_means_are_not() -> None:
    assert metric_interval("acc", [1, 1, 0, 1], mean, 0.75) == wilson_interval(3, 4)
    interval = metric_interval("acc", [0.2, 0.4, 0.9, 0.1, 0.4], mean, 0.4)
    assert interval.n == 5
    assert 0.0 < interval.low < 0.4 < interval.high < 1.0


def test_metrics_that_are_no_mean_are_resampled_through_their_aggregation() -> None:
    # IFEval's instructions: each question has several, the score is the share of all instructions.
    def flat(values: Any) -> float:
        parts = [part for value in values for part in value]
        return sum(parts) / len(parts)

    values = [[True, False], [True], [False, False, True], [True, True]] * 10
    interval = metric_interval("inst_level_strict_acc", values, flat, flat(values))
    assert interval.n == 40
    assert 0.4 < interval.low < interval.value < interval.high < 0.9

    # Perplexity: pairs, exp of a ratio. Few texts cannot tell their spread.
    def perplexity(pairs: Any) -> float:
        return math.exp(-sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs))

    texts = [(-3.0, 2), (-4.0, 2), (-2.0, 3), (-9.0, 4), (-1.0, 2)]
    for count in (1, 4, 5):
        few = metric_interval("word_perplexity", texts[:count], perplexity, perplexity(texts[:count]))
        assert (math.isnan(few.low), math.isnan(few.high)) == (count < 5, count < 5)


def test_an_unknown_spread_stays_unknown_in_the_group() -> None:
    known = Stratum(0.5, 0.01, 30, False)
    interval = group_interval([known, Stratum(0.5, math.nan, 1, False)], [0.5, 0.5], 0.5)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_names_of_metrics() -> None:
    # With its filter only where the task has several: acc, but exact_match,strict-match.
    assert labels([("acc", "none"), ("acc_norm", "none")]) == {("acc", "none"): "acc", ("acc_norm", "none"): "acc_norm"}
    two = [("exact_match", "strict-match"), ("exact_match", "flexible-extract")]
    assert set(labels(two).values()) == {"exact_match,strict-match", "exact_match,flexible-extract"}


def test_values_keep_the_order_of_questions() -> None:
    records = [
        {"doc_id": 0, "filter": "a", "metrics": ["m"], "m": 1},
        {"doc_id": 1, "filter": "a", "metrics": ["m"], "m": 0},
        {"doc_id": 0, "filter": "b", "metrics": ["m"], "m": 0},
    ]
    assert question_values(records) == {("m", "a"): [1, 0], ("m", "b"): [0]}


# crows_pairs counts stereotypes: its configuration says that fewer are better, its metric's name does not.
def test_the_direction_of_a_score_is_the_tasks() -> None:
    class Task:
        def __init__(self, **said: bool) -> None:
            self.said = said

        def higher_is_better(self) -> dict[str, bool]:
            return self.said

    less, more, silent = Task(acc=False, loss=False), Task(acc=True), Task()
    assert _higher_is_better([less], "acc") is False
    assert _higher_is_better([less, less], "acc") is False
    assert _higher_is_better([less, more], "acc") is True  # tasks that disagree: by the name
    assert (_higher_is_better([silent], "acc"), _higher_is_better([silent], "perplexity")) == (True, False)
