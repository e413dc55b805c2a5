"""Alarms: planted faults are found and named, healthy runs raise none, and only the past decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.synthetic_runs import SHAPES, healthy_run, records

from sengi.train.alarms import WINDOW, Alarm, Watch, find_alarms

FEW = settings(max_examples=15, deadline=None)


def kinds(alarms: list[Alarm]) -> list[str]:
    return [alarm.kind for alarm in alarms]


def test_healthy_runs_raise_no_alarm() -> None:
    # 1,000 runs: four shapes, short and long, quiet and noisy, normal and heavy tails; at most 2 in 1,000 may be wrong
    rng = np.random.default_rng(0)
    wrong = []
    for number in range(1000):
        shape, count = SHAPES[number % 4], (30, 90, 200)[number % 3]
        spread, norm_spread = (0.01, 0.1, 0.4)[number // 12 % 3], (0.1, 0.3)[number // 36 % 2]
        run = healthy_run(rng, shape, count, spread, norm_spread, heavy=number // 72 % 2 == 1)
        wrong += [(shape, count, spread, norm_spread, alarm.sentence) for alarm in find_alarms(run, count)]
    assert len(wrong) <= 2, wrong


@FEW
@given(st.integers(0, 1000), st.sampled_from([0.02, 0.1, 0.2]), st.integers(25, 120))
def test_a_loss_that_climbs_back_is_diverging(seed: int, spread: float, begin: int) -> None:
    rng = np.random.default_rng(seed)
    t = np.arange(200)
    loss = 1 + 1.5 * np.exp(-t / 20) + np.clip((t - begin) * 0.1, 0, 4) + spread * rng.standard_normal(200)
    alarms = [alarm for alarm in find_alarms(records(loss, np.ones(200)), None) if alarm.kind == "diverging"]
    assert len(alarms) == 1
    assert begin < alarms[0].step <= begin + 40
    assert "learning rate, 0.0001, is too high" in alarms[0].sentence
    assert "start again in another output_dir with learning_rate 3e-05 or less" in alarms[0].sentence


@pytest.mark.parametrize("top", [8.0, 25.0])
def test_a_loss_that_explodes_at_once_is_diverging(top: float) -> None:
    rng = np.random.default_rng(1)
    climb = np.concatenate([[3.0], np.linspace(4, top, 5), np.full(60, top)])
    loss = climb + np.where(np.arange(66) > 0, 0.15 * top, 0.05) * rng.standard_normal(66)
    alarms = find_alarms(records(loss, np.ones(66)), 66)
    assert kinds(alarms)[:1] == ["diverging"]
    assert "and was 3." in alarms[0].seen


def test_single_spikes_are_no_alarm() -> None:
    rng = np.random.default_rng(2)
    run = healthy_run(rng, "power", 300, 0.05)
    for step in (40, 90, 91, 150, 220):
        run[step]["loss"] += 5
        run[step]["grad_norm"] *= 30
    assert find_alarms(run, 300) == []


@FEW
@given(st.integers(0, 1000), st.sampled_from(["every step", "bursts"]))
def test_a_norm_that_begins_to_jump_is_oscillating(seed: int, how: str) -> None:
    rng = np.random.default_rng(seed)
    t = np.arange(200)
    jumps = t % 2 if how == "every step" else t % 5 == 0
    norm = np.exp(0.15 * rng.standard_normal(200) + np.where(t >= 100, np.log(6) * jumps, 0))
    alarms = find_alarms(records(2 - t / 200, norm), None)
    assert kinds(alarms) == ["oscillating"]
    assert 100 < alarms[0].step <= 130
    assert "times before" in alarms[0].seen


def test_a_norm_that_jumps_from_the_first_step_is_oscillating() -> None:
    t = np.arange(60)
    assert kinds(find_alarms(records(2 - t / 60, np.where(t % 2, 0.1, 2.0)), None)) == ["oscillating"]


def flat_run(count: int, noise_share: float | None) -> list[dict[str, object]]:
    """A loss that stands still after a fifth of the run; how much of the squared gradient norm is noise."""
    rng = np.random.default_rng(3)
    loss = 1 + 2 * np.exp(-np.arange(count) / (count / 60)) + 0.002 * rng.standard_normal(count)
    halves = {} if noise_share is None else {"half_grad_norm": float(np.sqrt(1 + noise_share)), "half_share": 0.5}
    return records(loss, np.ones(count), epochs=1.0, **halves)


def test_a_loss_that_stands_still_early_is_a_plateau() -> None:
    unknown, small, large = (find_alarms(flat_run(400, share), 400) for share in (None, 0.95, 0.2))
    assert kinds(unknown) == kinds(small) == kinds(large) == ["plateau"]
    assert unknown[0].step <= 200
    assert "the batch may be too small, the rate too low, or the data learned" in unknown[0].cause
    assert "the batch is too small for what is left to learn: noise is 95%" in small[0].cause
    assert "noise is only 20%" in large[0].cause
    # one alarm, however long it lasts
    assert kinds(find_alarms(flat_run(4000, None), 4000)) == ["plateau"]
    # a longer plan makes the same steps too few to say so, and without a plan nothing is early
    assert find_alarms(flat_run(400, None), 4000) == []
    assert find_alarms(flat_run(400, None), None) == []


def test_a_plateau_within_an_epoch_is_usual() -> None:
    # ten epochs: flat within each, a step down at every border
    t = np.arange(1000)
    loss = 2 - 0.1 * (t // 100) + 0.001 * np.random.default_rng(4).standard_normal(1000)
    assert find_alarms(records(loss, np.ones(1000), epochs=10), 1000) == []


@pytest.mark.parametrize("warmup", [10, 50])
def test_nothing_is_said_in_the_warm_up(warmup: int) -> None:
    t = np.arange(120)
    loss, norm = 3 + 0.2 * t + 0.01 * (t % 3), np.where(t % 2, 0.1, 2.0)
    alarms = find_alarms(records(loss, norm, warmup=warmup), 120)
    assert set(kinds(alarms)) == {"diverging", "oscillating"}
    assert min(alarm.step for alarm in alarms) >= warmup + WINDOW


def test_a_new_phase_begins_anew() -> None:
    rng = np.random.default_rng(5)
    first = healthy_run(rng, "power", 100, 0.05)
    second = [
        record | {"phase": "skills", "loss": record["loss"] + 3} for record in healthy_run(rng, "power", 100, 0.05)
    ]
    for number, record in enumerate(second):
        record["step"] = 101 + number
    assert find_alarms(first + second, 200) == []
    for record in second:
        record["phase"] = "stacked"
    assert kinds(find_alarms(first + second, 200)) == ["diverging"]


@FEW
@given(st.integers(0, 1000), st.integers(1, 260))
def test_only_the_past_decides_and_a_continued_watch_sees_the_same(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    run = healthy_run(rng, "fast start", 130, 0.05) + records(
        2 + np.cumsum(np.abs(rng.standard_normal(130))) / 10, np.exp(rng.standard_normal(130))
    )
    for number, record in enumerate(run):
        record["step"] = number + 1
    alarms = find_alarms(run, 260)
    assert alarms
    assert find_alarms(run[:cut], 260) == [alarm for alarm in alarms if alarm.step <= cut]
    watch = Watch(260)
    for record in run[:cut]:
        watch.add(record)
    assert [alarm for record in run[cut:] for alarm in watch.add(record)] == [a for a in alarms if a.step > cut]


def test_an_episode_raises_one_alarm_and_a_second_one_another() -> None:
    t = np.arange(400)
    bad = ((t >= 80) & (t < 140)) | (t >= 260)
    norm = np.where(bad & (t % 2 == 0), 8.0, 1.0) * np.exp(0.05 * np.random.default_rng(6).standard_normal(400))
    steps = [alarm.step for alarm in find_alarms(records(2 - t / 400, norm), None)]
    assert len(steps) == 2
    assert 80 < steps[0] < 140
    assert steps[1] > 260


def test_missing_and_non_finite_values_raise_nothing_here() -> None:
    run = healthy_run(np.random.default_rng(7), "line", 60, 0.1)
    run[30]["loss"], run[31]["grad_norm"] = float("nan"), None
    assert find_alarms(run, 60) == []
    assert find_alarms([], 10) == []
