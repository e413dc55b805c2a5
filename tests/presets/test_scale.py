"""--scale: steps an epoch stay the paper's, within rounding; sizes that can no longer be told apart are refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sengi.errors import RecipeError
from sengi.presets.scale import NOTABLE, PAPER_SAMPLES, scale_size, scaled, scaled_apart

SAMPLES = st.integers(1, 20_000_000)
PAPER = st.integers(1, PAPER_SAMPLES)


def test_the_paper_s_own_sizes() -> None:
    # 825,487 samples: 215 steps an epoch at 3,840, 6,449 at 128
    for size in (128, 3840, 7680, 250_000):
        assert scale_size(size, PAPER_SAMPLES) == size
    assert [round(scaled("effective_batch_size", size, 12_000).times[0]) for size in (128, 3840, 7680)] == [
        6449,
        215,
        107,
    ]
    assert [one.here for one in scaled_apart("effective_batch_size", [128, 3840, 7680], 12_000)] == [2, 56, 112]


@given(PAPER, SAMPLES)
def test_an_epoch_keeps_its_steps_within_rounding(paper: int, samples: int) -> None:
    here = scale_size(paper, samples)
    exact = paper * samples / PAPER_SAMPLES
    assert here >= 1
    assert abs(here - exact) <= 0.5 + 1e-9 * exact or (here == 1 and exact < 0.5)
    # so the steps of an epoch differ by at most the share that half a sample is of the batch
    in_paper, now = scaled("effective_batch_size", paper, samples).times
    if exact >= 0.5:
        assert abs(in_paper / now - 1) <= 0.5 / exact + 1e-9


@given(PAPER, PAPER, SAMPLES, SAMPLES)
def test_larger_stays_larger_or_equal(one: int, other: int, samples: int, more: int) -> None:
    assert scale_size(min(one, other), samples) <= scale_size(max(one, other), samples)
    assert scale_size(one, min(samples, more)) <= scale_size(one, max(samples, more))


@given(PAPER, SAMPLES)
def test_rounding_that_matters_is_said(paper: int, samples: int) -> None:
    size = scaled("save_samples", paper, samples)
    in_paper, now = size.times
    assert bool(size.note) == (abs(now / in_paper - 1) > NOTABLE)


@given(st.integers(1, 2000))
def test_sizes_that_become_one_are_refused_with_the_samples_that_would_do(samples: int) -> None:
    sizes = [128, 3840, 7680]
    if len({scale_size(size, samples) for size in sizes}) == 3:
        assert [one.here for one in scaled_apart("effective_batch_size", sizes, samples)] == [
            scale_size(size, samples) for size in sizes
        ]
        return
    with pytest.raises(RecipeError, match=r"too few to keep the paper's sizes of effective_batch_size apart") as caught:
        scaled_apart("effective_batch_size", sizes, samples)
    enough = re.search(r"([\d,]+) samples would do", str(caught.value))
    assert enough is not None
    assert len(scaled_apart("effective_batch_size", sizes, int(enough[1].replace(",", "")))) == 3


def test_data_for_one_size_only_is_too_few_for_three() -> None:
    with pytest.raises(RecipeError, match=r"--scale: 300 samples are too few .* \(128 -> 1, 3,840 -> 1, 7,680 -> 3\)"):
        scaled_apart("effective_batch_size", [128, 3840, 7680], 300)
