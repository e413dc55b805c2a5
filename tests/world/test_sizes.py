from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sengi.errors import InputError
from sengi.world.sizes import MAX_SAMPLES, MIN_SAMPLES, sizes_for


@given(st.integers(MIN_SAMPLES, MAX_SAMPLES))
def test_any_size_adds_up_and_every_fact_gets_enough_rows(samples: int) -> None:
    sizes = sizes_for(samples)
    assert sizes.knowledge + sizes.skills + sizes.instruction == sizes.samples == samples
    # Seven rows a fact in the smallest worlds, at most about twenty in the largest.
    assert 7 <= sizes.knowledge // sizes.taught <= 22
    assert 0 < sizes.eval_control <= sizes.control < sizes.taught
    assert 0 < sizes.eval_taught <= sizes.taught


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(200, (140, 30, 30)), (999, (701, 149, 149)), (1_000, (500, 300, 200)), (1_000_000, (500_000, 300_000, 200_000))],
)
def test_the_split_between_phases_is_the_documented_one(samples: int, expected: tuple[int, int, int]) -> None:
    sizes = sizes_for(samples)
    assert (sizes.knowledge, sizes.skills, sizes.instruction) == expected


@pytest.mark.parametrize("samples", [-1, 0, 99, 1_000_001])
def test_a_size_out_of_range_names_the_option(samples: int) -> None:
    with pytest.raises(InputError, match=rf"--samples {samples}: .* 100 to 1,000,000"):
        sizes_for(samples)
