from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.model.document_groups import GROUP, ROUND, ROW, lay_out

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=7)


def padded(length: int) -> int:
    return -(-length // ROUND) * ROUND


def cost(groups: list[list[int]], shared: int, heads: int) -> float:
    """Of documents with these lengths in these groups, as the module states it."""
    of_one = [padded(max(group)) * (shared + padded(max(group)) + ROW) for group in groups]
    return sum(heads * len(group) * one + GROUP for group, one in zip(groups, of_one, strict=True))


# Rule: every token of every head has one row in the groups and comes back from it; what is no token is padding.
@settings(max_examples=150)
@given(LENGTHS, st.integers(0, 9), st.sampled_from([(4, 2), (3, 3), (6, 1)]))
def test_every_row_has_one_place(rest: list[int], shared: int, heads: tuple[int, int]) -> None:
    lengths = (shared, *rest) if shared else tuple(rest)
    layout = lay_out(lengths, shared, *heads)
    assert sum(group.documents for group in layout.groups) == len(lengths)
    for rows, count in ((layout.queries, heads[0]), (layout.keys, heads[1])):
        assert rows.sources[rows.places].tolist() == list(range(sum(lengths) * count))
        copied = [] if rows.copies is None else rows.copies.ravel().tolist()
        everything = sorted([*rows.places.tolist(), *rows.padding.tolist(), *copied])
        assert everything == list(range(len(rows.sources)))
    if shared:
        assert layout.keys.copies is not None
        copies = layout.keys.sources[layout.keys.copies].reshape(len(rest), -1)
        assert copies.tolist() == [list(range(shared * heads[1]))] * len(rest)


# Rule: no other way to cut the documents, in order of their length, into groups costs less.
@settings(max_examples=60)
@given(LENGTHS, st.integers(0, 30), st.sampled_from([1, 9, 64]))
def test_the_cheapest_groups(rest: list[int], shared: int, heads: int) -> None:
    lengths = (shared, *rest) if shared else tuple(rest)
    groups = [group for group in lay_out(lengths, shared, heads, 1).groups if group.before == shared]
    if shared:  # the shared tokens are a group of their own
        assert len(groups) == len(lay_out(lengths, shared, heads, 1).groups) - 1
    chosen = [[group.length] * group.documents for group in groups]
    ordered = sorted(rest)
    cuts = itertools.product([False, True], repeat=len(rest) - 1)
    others = []
    for cut in cuts:
        parts: list[list[int]] = [[]]
        for length, ends in zip(ordered, [*cut, False], strict=True):
            parts[-1].append(length)
            if ends:
                parts.append([])
        others.append(cost(parts, shared, heads))
    assert cost(chosen, shared, heads) <= min(others) + 1e-6


def test_alike_documents_go_together() -> None:
    (group,) = lay_out((30, 32, 31, 25), 0, 9, 3).groups
    assert (group.documents, group.length) == (4, 32)


def test_a_long_one_pads_no_short_ones() -> None:
    groups = lay_out((500, *[20] * 30), 0, 9, 3).groups
    assert sorted((group.documents, group.length) for group in groups) == [(1, 504), (30, 24)]
