from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sengi.world.stream import Stream


def test_choices_are_the_same_on_every_machine() -> None:
    # Written down once; a change here changes every generated world.
    stream = Stream(1, "a")
    assert [stream.below(1_000) for _ in range(5)] == [817, 410, 187, 199, 788]
    assert stream.shuffled("abcdefgh") == list("cgbadfhe")


def test_names_and_seeds_separate_streams() -> None:
    first = [[Stream(seed, name).below(10**9) for _ in range(3)] for seed in (1, 2) for name in ("a", "b")]
    assert len({tuple(values) for values in first}) == 4


@given(st.integers(0, 2**40), st.integers(1, 50), st.integers(-20, 20))
def test_choices_stay_in_their_range(seed: int, size: int, low: int) -> None:
    stream, items = Stream(seed, "x"), list(range(size))
    assert 0 <= stream.below(size) < size
    assert low <= stream.between(low, low + 3) <= low + 3
    assert stream.pick(items) in items
    # A shuffle loses nothing; a sample repeats nothing, and is short where the items are few.
    assert sorted(stream.shuffled(items)) == items
    for n in (1, 3, 10):
        sample = stream.sample(items, n)
        assert len(set(sample)) == len(sample) == min(n, size)
        assert set(sample) <= set(items)
