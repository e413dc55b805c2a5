from __future__ import annotations

import json

import pytest
from benchmarks.peer_worker import SETTINGS, arguments
from benchmarks.throughput_result import (
    Side,
    Step,
    Work,
    best_of,
    loss_difference,
    mfu,
    mfu_of_rounds,
    ratio,
    summary,
    table,
)
from hypothesis import given
from hypothesis import strategies as st

from sengi.model.cost import ModelCost

WORK = Work(conversations=4, tokens=1000, targets=300)


def side(
    name: str,
    seconds: list[float],
    peak: int = 100,
    losses: list[float] | None = None,
    flops: float = 6e11,
    peaks: list[float | None] | None = None,
) -> Side:
    """A first step that took 99 seconds, then ``seconds``; CPU time is twice the wall time, 1e11 FLOP/s the peak."""
    times = [99.0, *seconds]
    losses = losses or [2.0 - 0.1 * n for n in range(len(times))]
    around = [9e11, *(peaks or [1e11] * len(seconds))]
    steps = [Step(t, 2 * t, loss, 1.0, top) for t, loss, top in zip(times, losses, around, strict=True)]
    return Side(name, steps, peak, flops)


def test_the_first_step_is_not_timed() -> None:
    assert side("sengi", [2.0, 3.0, 10.0]).seconds == 3.0


def test_a_ratio_compares_steps_of_one_round() -> None:
    # the third round was four times slower on both sides; rounds give 2, 3 and 2
    ours, theirs = side("sengi", [1.0, 1.0, 4.0]), side("default", [2.0, 3.0, 8.0])
    assert ratio(ours, theirs) == 2.0
    assert ratio(ours, theirs, cpu=True) == 2.0


def test_the_fastest_setting_is_the_best_and_a_slow_trick_is_not() -> None:
    sides = [side("default", [5.0]), side("packed", [3.0]), side("unpadded", [4.0])]
    assert best_of(sides).name == "packed"


def test_losses_are_compared_at_every_step_of_every_setting() -> None:
    ours = side("sengi", [1.0], losses=[2.0, 1.9])
    peers = [side("default", [1.0], losses=[2.0, 1.9]), side("packed", [1.0], losses=[2.001, 1.87])]
    assert loss_difference(ours, peers) == pytest.approx(0.03)


@given(st.floats(1, 1e5), st.floats(1, 1e4), st.floats(1, 1e7), st.floats(0.01, 1e3))
def test_mfu_is_useful_work_by_peak_and_time(tokens: float, targets: float, squares: float, seconds: float) -> None:
    # written out once more, for a model whose sizes are known: 6 FLOPs a parameter and token, head on targets only,
    # 6 * layers * heads * head size a squared token
    layers, heads, size, linear, head = 30, 9, 64, 106_000_000, 28_000_000
    cost = ModelCost(linear + head, linear, head, 6.0 * layers * heads * size, 0)
    flops = cost.flops(int(tokens), int(targets), squares)
    by_hand = 6 * int(tokens) * linear + 6 * int(targets) * head + 6 * layers * heads * size * squares
    assert mfu(side("sengi", [seconds], flops=flops, peaks=[1.5e11])) == pytest.approx(by_hand / seconds / 1.5e11)


def test_mfu_is_not_made_up_where_the_peak_is_not_known() -> None:
    unknown = side("sengi", [2.0], peaks=[None])
    assert mfu(unknown) is None
    assert summary(unknown, [side("default", [2.0])], WORK)["mfu_spread"] is None


def test_a_step_is_held_against_the_machine_of_its_round() -> None:
    # in the second round the machine could do half of what it can, and the step took twice as long
    ours = side("sengi", [8.0, 16.0, 10.0], peaks=[1e11, 0.5e11, 1e11])
    assert mfu_of_rounds(ours) == pytest.approx([0.75, 0.75, 0.6])
    assert mfu(ours) == pytest.approx(0.75)


def test_the_json_object() -> None:
    ours = side("sengi", [1.0, 2.0, 3.0], peak=90)
    peers = [side("default", [10.0, 10.0, 9.0], peak=70), side("packed", [4.0, 5.0, 6.0], peak=100)]
    found = json.loads(json.dumps(summary(ours, peers, WORK)))
    assert found["peer_best"] == "packed"
    assert found["ratio_to_peer_best"] == 2.5
    assert found["ratio_to_peer_best_spread"] == [2.0, 4.0]
    assert found["ratio_to_peer_default"] == 5.0
    assert found["loss_difference"] == found["first_loss_difference"] == 0.0
    assert found["memory_ratio"] == 0.9
    assert found["tokens_per_second"] == 500.0
    assert found["supervised_tokens_per_second"] == 150.0
    assert found["mfu"] == pytest.approx(3.0)  # 6e11 FLOP in 2 s at a peak of 1e11
    assert found["mfu_spread"] == pytest.approx([2.0, 6.0])


def test_the_table_has_a_row_a_trainer() -> None:
    rows = table("title", [side("sengi", [1.0]), side("default", [2.0])], WORK, ["note"])
    text = rows.text()
    assert [row[0] for row in rows.rows] == ["sengi", "default"]
    assert all(len(row) == len(rows.columns) for row in rows.rows)
    assert "note" in text


@pytest.mark.parametrize("peer", SETTINGS)
def test_every_peer_has_its_defaults_and_the_same_step_on_both_sides(peer: str) -> None:
    request = {"peer": peer, "dtype": "float32", "rows": 16, "max_length": 512, "learning_rate": 2e-5}
    request["max_tokens"] = 2048
    for setting in SETTINGS[peer]:
        values = arguments({**request, "setting": setting})
        assert values["gradient_accumulation_steps"] == 16  # never fewer micro-batches than rows: an epoch is a step
        assert values["bf16"] is False
        assert values["learning_rate"] == 2e-5
        if peer == "trl":  # without padding there is no limit
            limit = None if values.get("padding_free") else 2048 if setting == "packed_long" else 512
            assert values["max_length"] == limit
    assert SETTINGS[peer]["default"] == {}
