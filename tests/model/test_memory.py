from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.model.checkpointing import DIALS, Dial
from sengi.model.live_bytes import PHASES, MicroBatch
from sengi.model.memory import (
    CEILING,
    FITS,
    HELD_ADAPTER,
    HELD_AGAIN,
    HELD_CUDA,
    HELD_GATHERED,
    HELD_HALF,
    HELD_KEPT,
    KERNELS,
    LATER,
    STATE_BYTES,
    STEP,
    USEFUL,
    MemoryForecast,
    ModelSizes,
    Sharing,
    choose,
    forecast_memory,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZES = ModelSizes(10_000_000, 0, 10_000_000, layers=8, layer=1_000_000, outside=2_000_000, state_bytes=8.0)
PEAKS = dict(zip(PHASES, (30e6, 50e6, 45e6, 40e6, 20e6), strict=True))
BATCH = MicroBatch(30e6, PEAKS)


def forecast(sizes: ModelSizes = SIZES, batch: MicroBatch = BATCH, **more: Any) -> MemoryForecast:
    values: dict[str, Any] = {
        "again": 0.0,
        "later": 0.0,
        "sharing": Sharing(),
        "device": CPU,
        "resident": 500_000_000,
        "copied": None,
        "available": None,
        **more,
    }
    return forecast_memory(sizes, batch, **values)


# Weights, two moments, the largest of what comes and goes, and the process: each once, and their sum.
def test_the_parts_of_one_process() -> None:
    found = forecast(later=1.0)
    assert found.moment == "the first micro-batch"
    assert found.parts == {
        "process": 500_000_000 + LATER,
        "optimizer": 80_000_000,
        "weights": 40_000_000,
        "gradients": 40_000_000,
        "activations": 30_000_000,
        "loss head": 20_000_000,
        "allocator": int(HELD_KEPT * 30e6),
    }
    assert found.peak == sum(found.parts.values())
    assert list(found.parts.values()) == sorted(found.parts.values(), reverse=True)
    assert found.to_dict()["peak"] == found.peak


# What a heap holds beside what is in use: a part of the activations, of those computed again, of gathered layers.
def test_the_heap_holds_more_than_is_in_use() -> None:
    assert forecast(again=20e6).parts["allocator"] == int(HELD_KEPT * 30e6 + HELD_AGAIN * 20e6)
    assert forecast(half=True).parts["allocator"] == int(HELD_HALF * 30e6) + KERNELS
    adapter = replace(SIZES, trained=100_000, frozen_bytes=39_600_000)
    assert forecast(adapter).parts["allocator"] == int(HELD_ADAPTER * 30e6)
    assert forecast(adapter, half=True).parts["allocator"] == int(HELD_ADAPTER * 30e6) + KERNELS
    two = forecast(later=1.0, sharing=Sharing(2), half=True)
    assert two.parts["allocator"] == int(HELD_KEPT * 30e6 + HELD_GATHERED * 4 * 8_000_000)
    assert forecast(later=1.0, sharing=Sharing(2, kept=True)).parts["allocator"] == int(HELD_KEPT * 30e6)


# A GPU's allocator uses the place of the last step's gradients for activations, a heap does not.
def test_the_moment_of_the_peak_is_found() -> None:
    def on_gpu(batch: MicroBatch, later: float = 0.0) -> MemoryForecast:
        return forecast(batch=batch, later=later, device=CUDA, resident=0)

    # gradients come to be while activations go: with one micro-batch they are never there together
    assert on_gpu(BATCH).moment == "the end of a backward pass"
    large = MicroBatch(3e9, {phase: 3e9 for phase in PHASES[:-1]} | {PHASES[-1]: 0.0})
    assert on_gpu(large).moment == "the first micro-batch"
    assert "gradients" not in on_gpu(large).parts
    assert on_gpu(large).parts["allocator"] == int(HELD_CUDA * 3e9)
    assert on_gpu(large, 0.99).moment == "a later micro-batch"
    assert on_gpu(large, 0.5).moment == "the first micro-batch"
    assert forecast(batch=large).parts["gradients"] == 40_000_000
    nothing = MicroBatch(0.0, dict.fromkeys(PHASES, 0.0))
    assert on_gpu(nothing).parts["gradients"] == 40_000_000


@pytest.mark.parametrize("optim", STATE_BYTES)
def test_optimizer_states_by_kind(optim: str) -> None:
    found = forecast(replace(SIZES, state_bytes=STATE_BYTES[optim]))
    assert found.parts["optimizer"] == int(STATE_BYTES[optim] * 10_000_000)


# Rule: on a CPU a model is read whole, and its files are mapped beside what is made of them.
def test_reading_can_be_the_highest_moment_of_a_cpu() -> None:
    nothing = MicroBatch(0.0, dict.fromkeys(PHASES, 0.0))
    sizes = replace(SIZES, trained=100_000, frozen_bytes=20_000_000, parameters=10_100_000, read_bytes=50_000_000)
    found = forecast(sizes, batch=nothing, resident=0)
    assert found.moment == "reading the model"
    assert found.parts == {"weights": 50_000_000, "process": LATER}
    assert forecast(sizes, batch=nothing, resident=0, device=CUDA).moment != "reading the model"


# An adapter: gradients and moments of the adapter alone, the base as it is held.
# Rule: an update that widens its tensors can be the highest moment of a CPU: a heap still holds the activations then.
def test_an_update_with_copies_can_be_the_highest() -> None:
    plain, copies = forecast(), forecast(replace(SIZES, update_bytes=10**9))
    assert plain.moment == "the first micro-batch"
    assert copies.moment == "the update"
    assert copies.parts["update"] == 10**9
    assert copies.parts["activations"] == plain.parts["activations"]
    assert forecast(replace(SIZES, update_bytes=10**9), device=CUDA).moment != "the update"


def test_a_frozen_base_has_neither_gradients_nor_moments() -> None:
    sizes = replace(SIZES, trained=100_000, frozen_bytes=5_000_000, parameters=10_100_000)
    found = forecast(sizes, later=1.0)
    assert found.parts["weights"] == 5_000_000 + 400_000
    assert found.parts["gradients"] == 400_000
    assert found.parts["optimizer"] == 800_000


# Rule: quantized weights are whole on every rank, so more ranks do not make them smaller, and nobody gathers them.
def test_quantized_weights_are_not_shared() -> None:
    sizes = replace(SIZES, trained=800_000, frozen_bytes=8_000_000, parameters=10_800_000, whole_bytes=4_000_000)
    one, two = forecast(sizes, later=1.0), forecast(sizes, later=1.0, sharing=Sharing(2))
    assert one.parts["weights"] == 4_000_000 + 8_000_000 + 3_200_000
    assert two.parts["weights"] == 4_000_000 + (8_000_000 + 3_200_000) // 2
    assert two.parts["gathered weights"] == 4 * (2_000_000 + 3 * 100_000)


def test_ranks_share_what_fsdp_splits() -> None:
    one, two = forecast(later=1.0), forecast(later=1.0, sharing=Sharing(2))
    assert two.parts["weights"] == one.parts["weights"] // 2
    assert two.parts["optimizer"] == one.parts["optimizer"] // 2
    assert two.parts["gradients"] == one.parts["gradients"]  # whole until the last micro-batch reduces them
    assert two.parts["gathered weights"] == 4 * (2_000_000 + 3 * 1_000_000)
    each = forecast(later=1.0, sharing=Sharing(2, reduced_each=True))
    assert each.parts["gradients"] == one.parts["gradients"] // 2
    # a step that is reduced at its middle, too: the second half's whole gradients beside a share of the first's
    halved = forecast(later=1.0, sharing=Sharing(2, halved=True))
    assert halved.parts["gradients"] == one.parts["gradients"] * 3 // 2
    assert forecast(later=1.0, sharing=Sharing(2, reduced_each=True, halved=True)).parts == each.parts
    kept = forecast(later=1.0, sharing=Sharing(2, kept=True))
    assert kept.parts["gathered weights"] == 4 * 10_000_000


def test_a_gpu_counts_its_own_memory_alone() -> None:
    found = forecast(device=CUDA, resident=0, copied=0)
    assert "process" not in found.parts
    assert "copy for background saves" not in found.parts


# The copy of a background save is taken only where half of the free memory holds it; then training waits instead.
def test_copies_for_saves_only_where_there_is_room() -> None:
    copies, name = 120_000_000, "copy for background saves"
    assert forecast(copied=0).parts[name] == copies
    without = forecast().peak
    assert forecast(copied=0, available=without + 2 * copies).parts[name] == copies
    assert name not in forecast(copied=0, available=without + 2 * copies - 10).parts
    # two ranks share the state; the first also copies whole weights in bfloat16 for the files
    assert forecast(copied=20_000_000, sharing=Sharing(2)).parts[name] == copies // 2 + 20_000_000


def line(floor: dict[Dial, int], slope: dict[Dial, int], available: int) -> Any:
    return lambda dial, tokens: MemoryForecast("", {"all": floor[dial] + slope[dial] * tokens}, available)


# The fastest dial that fits a useful micro-batch, and then as many tokens as fit and help.
@settings(max_examples=300)
@given(
    st.integers(1, 4000),
    st.integers(0, 10**9),
    st.lists(st.integers(1, 10**6), min_size=3, max_size=3).map(lambda v: sorted(v, reverse=True)),
    st.integers(1, 4 * 10**9),
    st.sampled_from([CPU, CUDA]),
)
def test_what_is_chosen_is_the_fastest_that_fits(
    longest: int, floor: int, slopes: list[int], available: int, device: torch.device
) -> None:
    forecasts = line(dict.fromkeys(DIALS, floor), dict(zip(DIALS, slopes, strict=True)), available)
    dial, budget = choose(None, None, longest, device, forecasts)
    assert longest <= budget <= max(longest, CEILING[device.type])

    def fits(other: Dial, tokens: int) -> bool:
        return forecasts(other, tokens).peak <= FITS * available

    useful = max(longest, USEFUL[device.type])
    for faster in DIALS[: DIALS.index(dial)]:
        assert not fits(faster, useful + STEP)  # to the step of 512 that budgets are rounded to
    smallest = max(longest, STEP)
    if budget > smallest:
        assert fits(dial, budget)
        if budget < max(longest, CEILING[device.type]):
            assert not fits(dial, budget + STEP)
    # what the recipe says stays
    assert choose(None, 777, longest, device, forecasts)[1] == 777
    for given_dial in DIALS:
        assert choose(given_dial, None, longest, device, forecasts)[0] == given_dial
        assert choose(given_dial, 5, longest, device, forecasts) == (given_dial, 5)


def test_without_a_limit_nothing_is_recomputed() -> None:
    forecasts = line(dict.fromkeys(DIALS, 10), dict.fromkeys(DIALS, 10), 10**12)
    assert choose(None, None, 100, CPU, forecasts) == ("none", 4096)
    assert choose(None, None, 100, CUDA, forecasts) == ("none", 65_536)
    assert choose(None, None, 9000, CPU, forecasts) == ("none", 9000)
    unknown = lambda dial, tokens: MemoryForecast("", {"all": 10**15}, None)  # noqa: E731
    assert choose(None, None, 100, CPU, unknown) == ("none", 4096)
    assert unknown("none", 1).fits


# Where memory is short, recomputation comes before tiny micro-batches; where nothing fits, the least is taken.
def test_recomputation_comes_before_tiny_micro_batches() -> None:
    slope: dict[Dial, int] = {"none": 1000, "selective": 500, "full": 100}
    floor: dict[Dial, int] = dict.fromkeys(DIALS, 0)
    for room, wanted in ((5_000_000, ("none", 4096)), (1_400_000, ("none", 1024)), (900_000, ("selective", 1536))):
        assert choose(None, None, 100, CPU, line(floor, slope, room)) == wanted
    assert choose(None, None, 100, CPU, line(floor, slope, 300_000)) == ("full", 2560)
    assert choose(None, None, 100, CPU, line(floor, slope, 10)) == ("full", 512)
