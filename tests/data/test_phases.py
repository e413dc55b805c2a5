"""The order of phases: which samples, which steps, what is replayed, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.train.memory_run import random_samples, small_recipe, write_store

from sengi.data.columns import read_column
from sengi.data.phases import RunOrder, order_of, run_order
from sengi.data.plan import StepPlan
from sengi.data.store import TokenStore
from sengi.errors import DataError, RecipeError

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def phased(
    sizes: list[int], batch: int, epochs: int, seed: int, max_steps: int | None = None, **phases: Any
) -> RunOrder:
    """Phases p0, p1, ... of these sizes, their samples spread over the store."""
    recipe = small_recipe(
        strategy="phased",
        phases=phases,
        effective_batch_size=batch,
        num_train_epochs=epochs,
        seed=seed,
        max_steps=max_steps,
    )
    return order_of(recipe, groups_of(sizes), [sum(sizes)], [1.0])


def groups_of(sizes: list[int]) -> dict[str, np.ndarray]:
    spread = np.random.default_rng(len(sizes)).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return {f"p{k}": np.flatnonzero(spread == k) for k in range(len(sizes))}


def all_steps(order: RunOrder) -> list[np.ndarray]:
    return [order.step_samples(step) for step in range(1, order.num_steps + 1)]


@settings(max_examples=60)
@given(SIZES, st.integers(1, 50), st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.3, 1.0]))
@example([5, 5], 100, 3, 1, 0.3)  # a phase is one short step
def test_each_phase_sees_its_samples_once_an_epoch(
    sizes: list[int], batch: int, epochs: int, seed: int, replay: float
) -> None:
    replay = replay if len(sizes) > 1 else 0.0
    order, groups = phased(sizes, batch, epochs, seed, replay=replay), groups_of(sizes)
    assert order.phases[0].first == 0
    for number, (phase, own) in enumerate(zip(order.phases, groups.values(), strict=True)):
        steps = [order.step_samples(step) for step in range(phase.first + 1, phase.last + 1)]
        # exactly N a step, the rest in the last one of the phase
        assert [len(step) for step in steps[:-1]] == [batch] * (len(steps) - 1)
        assert 1 <= len(steps[-1]) <= batch
        # replayed samples are of earlier phases, none twice, as many as were asked for
        replayed = phase.members[phase.own :]
        earlier = np.concatenate([np.empty(0, int), *list(groups.values())[:number]])
        assert len(set(replayed.tolist())) == len(replayed)
        assert set(replayed.tolist()) <= set(earlier.tolist())
        assert len(replayed) == (max(1, round(replay * len(earlier))) if replay and number else 0)
        # and in each epoch every sample of the phase comes exactly once
        seen, size = np.concatenate(steps), len(own) + len(replayed)
        for epoch in range(epochs):
            part = seen[epoch * size : (epoch + 1) * size]
            assert sorted(part.tolist()) == sorted([*own.tolist(), *replayed.tolist()])
    # steps and samples are counted on through all phases
    assert [p.first for p in order.phases[1:]] == [p.last for p in order.phases[:-1]]
    counts = np.cumsum([len(step) for step in all_steps(order)])
    assert [order.samples_seen(step) for step in range(order.num_steps + 1)] == [0, *counts]
    assert [order.ends_phase(step) for step in range(1, order.num_steps + 1)].count(True) == len(sizes)
    assert order.epoch_at(order.num_steps) == epochs


@settings(max_examples=30)
@given(SIZES, st.integers(1, 30), st.integers(1, 3), st.integers(0, 2**32 - 1), st.data())
def test_a_step_is_a_pure_function_of_its_number(
    sizes: list[int], batch: int, epochs: int, seed: int, data: st.DataObject
) -> None:
    replay = 0.2 if len(sizes) > 1 else 0.0
    steps = all_steps(phased(sizes, batch, epochs, seed, replay=replay))
    for step in data.draw(st.lists(st.integers(1, len(steps)), max_size=4)):
        np.testing.assert_array_equal(
            phased(sizes, batch, epochs, seed, replay=replay).step_samples(step), steps[step - 1]
        )
    with pytest.raises(ValueError, match="outside 1"):
        phased(sizes, batch, epochs, seed).step_samples(len(steps) * 3 + 1)


@settings(max_examples=40)
@given(st.integers(1, 80), st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_one_phase_is_the_stacked_order(size: int, batch: int, epochs: int, seed: int, max_steps: int) -> None:
    for limit in (None, max_steps):
        plan = StepPlan(size, batch, epochs, seed, limit, entries=[(size, 1.0)])
        order = phased([size], batch, epochs, seed, limit)
        assert (order.num_steps, order.total_samples) == (plan.num_steps, plan.total_samples)
        for step in range(1, plan.num_steps + 1):
            np.testing.assert_array_equal(order.step_samples(step), plan.step_samples(step))
            assert order.epoch_at(step) == plan.epoch_at(step)


@settings(max_examples=80)
@given(st.lists(st.integers(1, 60), min_size=2, max_size=5), st.integers(1, 9), st.integers(1, 5), st.data())
def test_max_steps_shortens_all_phases_alike(sizes: list[int], batch: int, epochs: int, data: st.DataObject) -> None:
    whole = [phase.plan.num_steps for phase in phased(sizes, batch, epochs, 7).phases]
    limit = data.draw(st.integers(len(sizes), sum(whole) + 3))
    cut = [phase.plan.num_steps for phase in phased(sizes, batch, epochs, 7, limit).phases]
    assert sum(cut) == min(limit, sum(whole))
    assert all(1 <= steps <= of for steps, of in zip(cut, whole, strict=True))
    exact = [limit * of / sum(whole) for of in whole]
    if limit < sum(whole) and min(exact) >= 1:
        assert all(abs(steps - share) < 1 for steps, share in zip(cut, exact, strict=True))


def test_fewer_steps_than_phases_are_refused() -> None:
    with pytest.raises(RecipeError, match="max_steps is 2, but there are 3 phases"):
        phased([9, 9, 9], 3, 1, 0, max_steps=2)


def test_a_phase_has_its_own_settings_and_weights() -> None:
    own = {"p1": {"effective_batch_size": 4, "num_train_epochs": 3, "learning_rate": 1e-6, "warmup_steps": 0.5}}
    order = phased([10, 8], 5, 1, 0, settings=own)
    first, second = order.phases
    assert (first.plan.num_steps, second.plan.num_steps) == (2, 6)
    assert (first.recipe.learning_rate, second.recipe.learning_rate) == (2e-5, 1e-6)
    assert order.summary()[1]["warmup_steps"] == 3
    assert [len(step) for step in all_steps(order)] == [5, 5, 4, 4, 4, 4, 4, 4]
    # weights are of data entries, wherever their samples lie
    recipe = small_recipe(strategy="phased", data=[{"path": "a", "weight": 2}, {"path": "b"}], num_train_epochs=1)
    groups = {"one": np.array([0, 3]), "two": np.array([1, 2, 4])}
    weighted = order_of(recipe, groups, [2, 3], [2.0, 1.0])
    assert sorted(weighted.phases[0].members[weighted.phases[0].plan.epoch_order(0)].tolist()) == [0, 0, 3]
    assert sorted(weighted.phases[1].members[weighted.phases[1].plan.epoch_order(0)].tolist()) == [1, 1, 2, 4]


def test_mean_values_count_each_phase_by_its_samples() -> None:
    order = phased([3, 2], 1, 1, 0, settings={"p1": {"num_train_epochs": 4}})
    values = np.arange(5)
    everything = [values[index] for step in all_steps(order) for index in step]
    assert order.total_of(values) == pytest.approx(sum(everything))


@pytest.mark.parametrize(
    ("sizes", "phases", "message"),
    [
        ([4, 4], {"settings": {"p3": {}}}, r"phases.settings: there is no phase 'p3'; did you mean 'p"),
        ([4], {"replay": 0.01}, "replay is 0.01, but 'p0' is the only phase"),
    ],
)
def test_settings_and_replay_that_mean_nothing(sizes: list[int], phases: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        phased(sizes, 2, 1, 0, **phases)


# ---- which sample is in which phase


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenStore:
    """Twelve samples with a topic and a difficulty in their rows; the store knows the phases of the rows."""
    monkeypatch.chdir(tmp_path)
    rows = [{"topic": "ab"[n % 2], "difficulty": (n * 7) % 5, "text": str(n)} for n in range(12)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ["skills" if n % 3 else "facts" for n in range(12)]
    return write_store(tmp_path / "store", random_samples(12, 50), phases=names)


def split(store: TokenStore, **phases: Any) -> dict[str, list[int]]:
    order = run_order(small_recipe(strategy="phased", phases=phases, effective_batch_size=2), store)
    return {phase.name: phase.members.tolist() for phase in order.phases}


def test_phases_of_rows_come_in_the_order_of_the_data(data: TokenStore) -> None:
    facts, skills = [0, 3, 6, 9], [1, 2, 4, 5, 7, 8, 10, 11]
    assert split(data) == {"facts": facts, "skills": skills}
    assert list(split(data, order=["skills", "facts"])) == ["skills", "facts"]


def test_phases_by_response_length_split_supervised_tokens(data: TokenStore) -> None:
    parts = split(data, by="response_length")
    assert [len(part) for part in parts.values()] == [6, 6]
    assert data.supervised[parts["part-1"]].max() <= data.supervised[parts["part-2"]].min()
    thirds = split(data, by="response_length", at=[0.25, 0.5])
    assert [len(part) for part in thirds.values()] == [3, 3, 6]
    assert sorted(index for part in thirds.values() for index in part) == list(range(12))


def test_phases_by_a_column(data: TokenStore) -> None:
    assert split(data, by="topic") == {"a": list(range(0, 12, 2)), "b": list(range(1, 12, 2))}
    parts = split(data, by="difficulty", at=0.4)
    values = np.array(read_column(data, "difficulty"))
    assert max(values[parts["part-1"]]) <= min(values[parts["part-2"]])
    # numbers without `at` are names, in the order in which they come
    assert list(split(data, by="difficulty")) == ["0", "2", "4", "1", "3"]
    # what was read is kept beside the store: the file is not needed again
    Path("data.jsonl").unlink()
    assert read_column(data, "topic") == ["a", "b"] * 6


def test_equal_numbers_are_split_by_chance_not_by_file(tmp_path: Path) -> None:
    samples = [replace(random_samples(1, 50)[0]) for _ in range(40)]
    store = write_store(tmp_path / "store", samples)
    first = split(store, by="response_length")["part-1"]
    assert first != list(range(20))
    assert first == split(store, by="response_length")["part-1"]


@pytest.mark.parametrize(
    ("phases", "error", "message"),
    [
        ({"order": ["facts", "skils"]}, RecipeError, r"phases.order: there is no phase 'skils'; did you mean 'skills'"),
        ({"order": ["facts"]}, RecipeError, "order does not name skills"),
        ({"by": "topics"}, RecipeError, "phases.by is 'topics', but no row of data.jsonl has such a column"),
        ({"by": "topic", "at": 0.5}, DataError, r"data.jsonl:1: its 'topic' is 'a', no number"),
        ({"by": "response_length", "at": 0.01}, RecipeError, "leaves a phase empty"),
    ],
)
def test_phases_that_do_not_fit_the_data(
    data: TokenStore, phases: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        split(data, **phases)


def test_a_sample_without_a_phase_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = write_store(tmp_path / "store", random_samples(3, 50), phases=["facts", "", "facts"])
    with pytest.raises(DataError, match=r"data.jsonl:2: has no phase; give its data entry 'phase: NAME'"):
        split(store)
    rows = [{"topic": "a"}, {"topic": None}, {"topic": "b"}]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"data.jsonl:2: has no 'topic'"):
        split(store, by="topic")


def test_a_column_of_ids_makes_no_phases(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", random_samples(100, 50))
    with pytest.raises(RecipeError, match="gives 100 phases"):
        run_order(small_recipe(strategy="phased", phases={"by": "id"}), store, lambda _: [f"id{n}" for n in range(100)])
