from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sengi.data.packing import TURNS_FOR_HALVES, StepPacks, pack_lengths, pack_step
from sengi.errors import InputError

BUDGETS = st.integers(8, 300)


@st.composite
def steps(draw: st.DrawFn) -> tuple[np.ndarray, int, int, float]:
    budget = draw(BUDGETS)
    lengths = draw(st.lists(st.integers(1, budget), min_size=1, max_size=80))
    return np.array(lengths, np.int64), budget, draw(st.integers(1, 9)), draw(st.sampled_from([0.0, 1e-3, 0.5]))


def slots(packs: StepPacks) -> list[np.ndarray]:
    return [pack for rank in packs.ranks for pack in rank]


@settings(max_examples=300)
@given(steps())
@example((np.array([5]), 8, 4, 0.0))  # fewer samples than ranks
@example((np.array([64, 64, 128, 1]), 128, 2, 0.0))  # spaces on the borders of the bitmap's words
@example((np.array([63, 65, 127, 1, 64]), 128, 3, 0.0))
def test_every_sample_is_in_exactly_one_pack(step) -> None:
    lengths, budget, ranks, cost = step
    packs = pack_step(lengths, budget, ranks, cost)
    # each sample once
    assert sorted(np.concatenate(slots(packs)).tolist()) == list(range(len(lengths)))
    # no pack over the budget
    assert all(lengths[pack].sum() <= budget for pack in slots(packs))
    # collectives need the same number of micro-batches on every rank
    assert len(packs.ranks) == ranks
    assert len({len(rank) for rank in packs.ranks}) == 1
    assert packs.num_packs == sum(len(pack) > 0 for pack in slots(packs))
    assert packs.tokens == lengths.sum()
    assert packs.fill(budget) == pytest.approx(lengths.sum() / (budget * len(slots(packs))))


@settings(max_examples=300)
@given(steps())
def test_number_of_packs_is_near_the_least_possible(step) -> None:
    lengths, budget, ranks, cost = step
    least = -(-int(lengths.sum()) // budget)  # no packing can do with fewer
    one_rank = pack_step(lengths, budget, 1, cost)
    # best fit decreasing: at most 11/9 OPT + 1. OPT is bounded below by `least` and by the samples above half the
    # budget, no two of which share a pack; above by twice `least`, since two packs together exceed the budget
    halves = int((lengths > budget // 2).sum())
    assert max(least, halves) <= one_rank.num_packs <= max(2 * least, 1)
    # what pack_lengths forecasts is what is done
    assert pack_lengths(lengths, budget) == one_rank.num_packs == len(one_rank.ranks[0])
    # more ranks cost no more than the packs that make the counts equal
    slots_needed = -(-one_rank.num_packs // ranks) * ranks
    assert len(slots(pack_step(lengths, budget, ranks, cost))) == slots_needed


@settings(max_examples=200)
@given(steps())
def test_halves_are_packed_apart(step) -> None:
    lengths, budget, ranks, cost = step
    mixed, apart = (pack_step(lengths, budget, ranks, cost, halves=halves) for halves in (False, True))
    assert mixed.half is None
    if len(mixed.ranks[0]) < (2 if ranks == 1 else TURNS_FOR_HALVES):  # nothing to tell apart, or too little
        assert apart.half is None
        assert [pack.tolist() for pack in slots(apart)] == [pack.tolist() for pack in slots(mixed)]
        return
    middle, parts = len(lengths) // 2, (slice(apart.half), slice(apart.half, None))
    first, second = ([pack for rank in apart.ranks for pack in rank[part]] for part in parts)
    assert sorted(np.concatenate(first).tolist()) == list(range(middle))
    assert sorted(np.concatenate(second).tolist()) == list(range(middle, len(lengths)))
    packs = first + second
    assert all(lengths[pack].sum() <= budget for pack in packs)
    assert len({len(rank) for rank in apart.ranks}) == 1
    assert (apart.num_packs, apart.tokens) == (sum(len(pack) > 0 for pack in packs), mixed.tokens)


@settings(max_examples=80)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(12, 20))
def test_best_fit_decreasing_keeps_its_bound_against_the_true_optimum(lengths, budget) -> None:
    # Johnson 1974: BFD(I) <= 11/9 OPT(I) + 4, and 11/9 OPT + 6/9 for FFD; here against an exhaustive search
    optimum = next(n for n in range(1, len(lengths) + 1) if _fits(sorted(lengths, reverse=True), [budget] * n))
    assert pack_lengths(np.array(lengths, np.int64), budget) <= 11 / 9 * optimum + 1


def _fits(lengths: list[int], room: list[int]) -> bool:
    if not lengths:
        return True
    first, *rest = lengths
    for space in {space for space in room if space >= first}:
        left = room.copy()
        left[left.index(space)] -= first
        if _fits(rest, left):
            return True
    return False


@settings(max_examples=100)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(200, 400))
def test_best_fit_is_best_fit_and_first_come_among_equals(lengths, budget) -> None:
    # the rule, in words: longest first, each into the fullest pack that has room, else into a new one
    lengths = np.array(lengths, np.int64)
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        able = [room for room in rooms if room >= length]
        if able:
            rooms[rooms.index(min(able))] -= length
        else:
            rooms.append(budget - length)
    packs = pack_step(lengths, budget)
    assert sorted(budget - int(lengths[p].sum()) for p in packs.ranks[0]) == sorted(rooms)


def test_packing_is_a_pure_function_of_its_arguments() -> None:
    lengths = np.random.default_rng(1).integers(1, 500, 700)
    first, second = (pack_step(lengths.copy(), 1024, 4, 1e-4) for _ in range(2))
    for one, two in zip(slots(first), slots(second), strict=True):
        np.testing.assert_array_equal(one, two)


def test_cost_is_balanced_over_ranks_and_within_a_turn() -> None:
    # 997 lognormal lengths: slack in the last turn is spread, so no rank waits long for another
    lengths = np.clip(np.random.default_rng(2).lognormal(5, 0.8, 997), 4, 2048).astype(np.int64)
    attention_cost = 1e-3
    packs = pack_step(lengths, 4096, 8, attention_cost)
    costs = lengths + attention_cost * lengths.astype(float) ** 2
    per_rank = [sum(costs[pack].sum() for pack in rank) for rank in packs.ranks]
    assert max(per_rank) / (sum(per_rank) / 8) < 1.05
    for turn in zip(*packs.ranks, strict=True):
        turn_costs = [costs[pack].sum() for pack in turn]
        assert max(turn_costs) / (sum(turn_costs) / 8) < 1.15


def test_fewer_samples_than_ranks_gives_empty_turns() -> None:
    packs = pack_step(np.array([3, 4], np.int64), 100, 5)
    assert sorted(len(pack) for rank in packs.ranks for pack in rank) == [0, 0, 0, 1, 1]
    assert packs.num_packs == 2


def test_spreading_that_does_not_fit_falls_back_to_splitting() -> None:
    # 3 packs for 2 ranks: a fourth is made. Longest first by cost cannot always place all; nothing may be lost then.
    rng = np.random.default_rng(3)
    for _ in range(200):
        lengths = rng.integers(30, 100, rng.integers(3, 12))
        packs = pack_step(lengths, 100, 4, 0.5)
        assert sorted(np.concatenate(slots(packs)).tolist()) == list(range(len(lengths)))
        assert all(lengths[pack].sum() <= 100 for pack in slots(packs))


def test_a_sample_longer_than_the_budget_is_an_error_that_names_the_key() -> None:
    with pytest.raises(InputError, match="max_tokens_per_device is 10, but a sample has 11 tokens; raise"):
        pack_step(np.array([3, 11], np.int64), 10)


def test_no_samples() -> None:
    packs = pack_step(np.array([], np.int64), 10, 2)
    assert packs.ranks == [[], []]
    assert packs.fill(10) == 0.0


def test_a_budget_of_billions_costs_no_memory() -> None:
    lengths = np.array([5, 7, 9], np.int64)
    packs = pack_step(lengths, 10**12)
    assert [sorted(pack.tolist()) for pack in packs.ranks[0]] == [[0, 1, 2]]


@pytest.mark.parametrize("halves", [False, True])
def test_packs_are_full_at_the_papers_batch(halves: bool) -> None:
    # 3,840 samples of instruction-tuning lengths and a budget of 4,096: at least 99% full
    lengths = np.clip(np.random.default_rng(4).lognormal(5.5, 0.8, 3840), 8, 4096).astype(np.int64)
    assert pack_step(lengths, 4096, halves=halves).fill(4096) > 0.99


def test_turns_pair_packs_of_like_cost() -> None:
    lengths = np.random.default_rng(5).integers(1, 60, 64)
    packs = pack_step(lengths, 64, 4)
    loads = [[int(lengths[pack].sum()) for pack in turn] for turn in zip(*packs.ranks, strict=True)]
    assert all(min(earlier) >= max(later) for earlier, later in itertools.pairwise(loads))


def test_the_forecast_refuses_what_packing_refuses() -> None:
    with pytest.raises(InputError, match="max_tokens_per_device is 10, but a sample has 5000 tokens"):
        pack_lengths(np.array([3, 5000], np.int64), 10)
