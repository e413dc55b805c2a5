from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sengi.inference.prefix_tree import PrefixTree

# Few letters, so that beginnings are shared, nested and repeated
sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)
savings = st.sampled_from([None, 0, 1, 3, 100])


def layout(tree: PrefixTree) -> list[int]:
    return [token for pack in tree.nodes() for token in tree.token_ids(pack).tolist()]


# Whatever is shared or not: every sequence is read back whole from its places in the layout.
@given(sequences, savings)
def test_every_sequence_is_in_the_layout(texts: list[list[int]], min_saved: int | None) -> None:
    tree = PrefixTree(texts, min_saved)
    tokens = layout(tree)
    assert len(tokens) == tree.tokens
    for text, index in zip(texts, tree.text_of, strict=True):
        places = [row for part in reversed(tree.rows(index, 0, len(text))) for row in part]
        assert [tokens[place] for place in places] == text
        for first in range(len(text)):
            inner = [row for part in reversed(tree.rows(index, first, len(text))) for row in part]
            assert inner == places[first:]


# Where everything is shared, each distinct beginning is computed once: no more and no fewer.
@given(sequences)
def test_each_distinct_beginning_is_computed_once(texts: list[list[int]]) -> None:
    beginnings = {tuple(text[:n]) for text in texts for n in range(1, len(text) + 1)}
    assert PrefixTree(texts, 0).tokens == len(beginnings)


# A node less is never more than its saving lost, and with None every text that begins no other stands alone.
@given(sequences, st.integers(0, 6))
def test_small_savings_are_left(texts: list[list[int]], min_saved: int) -> None:
    least, ours, most = PrefixTree(texts, 0), PrefixTree(texts, min_saved), PrefixTree(texts, None)
    assert least.tokens <= ours.tokens <= most.tokens
    dropped = len(list(least.nodes())) - len(list(ours.nodes()))
    assert ours.tokens - least.tokens <= dropped * max(0, min_saved - 1) * 2
    whole = {tuple(t) for t in texts if not any(len(o) > len(t) and o[: len(t)] == t for o in texts)}
    assert most.tokens == sum(map(len, whole))
    assert {tuple(t.tolist()) for t in most.texts} == whole


# The rule that attention rests on: overwriting one path span by span, each span finds its own ancestors there.
@given(sequences, savings, st.integers(1, 12), st.integers(1, 40))
def test_one_path_is_enough(texts: list[list[int]], min_saved: int | None, batch: int, keys: int) -> None:
    tree = PrefixTree(texts, min_saved)
    path = np.full(tree.longest, -1)
    place = 0
    for pack in tree.packs(batch, keys):
        ids = tree.token_ids(pack)
        assert (pack.begin, pack.end) == (place, place + len(ids))
        assert len(ids) <= batch
        assert len(pack.spans) == 1 or sum(s.depth + s.length for s in pack.spans) <= keys
        for begin, depth, length, text in pack.spans:
            assert begin == place
            path[depth : depth + length] = ids[begin - pack.begin : begin - pack.begin + length]
            assert path[: depth + length].tolist() == tree.texts[text][: depth + length].tolist()
            place += length
    assert place == tree.tokens


# All packs but the last are full, so that a kernel made for their shape serves them all.
@given(sequences, st.integers(1, 12))
def test_packs_are_full(texts: list[list[int]], batch: int) -> None:
    lengths = [pack.end - pack.begin for pack in PrefixTree(texts).packs(batch, 10**6)]
    assert set(lengths[:-1]) <= {batch}
    assert lengths[-1] <= batch


# A node is cut where a pack is full and nowhere else.
@given(sequences, st.integers(1, 12))
def test_nodes_are_cut_between_packs_only(texts: list[list[int]], batch: int) -> None:
    tree = PrefixTree(texts)
    packs = list(tree.packs(batch, 10**6))
    borders = {pack.begin for pack in packs}
    nodes = {pack.begin for pack in tree.nodes()}
    assert {span.begin for pack in packs for span in pack.spans} == nodes | borders


# Memory is known early: the longest path comes first; at every fork, too.
def test_the_longest_path_comes_first() -> None:
    texts = [[9], [5, 5, 1], [7, *[1] * 5, 2], [7, *[1] * 5, 3, 3, 3, 3], [5, 5, 2, 2, 2, 2, 2, 2]]
    tree = PrefixTree(texts, 0)
    leaves = [span.text for pack in tree.nodes() for span in pack.spans]
    assert tree.texts[leaves[0]].tolist() == texts[3]
    seen = [tree.token_ids(pack).tolist() for pack in tree.nodes()]
    assert seen == [[7, 1, 1, 1, 1, 1], [3, 3, 3, 3], [2], [5, 5], [2, 2, 2, 2, 2, 2], [1], [9]]


# The packs, and with them every rounding, do not depend on the order of the requests.
@given(sequences.flatmap(lambda texts: st.tuples(st.just(texts), st.permutations(texts))))
def test_order_of_the_requests_does_not_matter(both: tuple[list[list[int]], list[list[int]]]) -> None:
    one, two = map(PrefixTree, both)
    assert list(one.packs(5, 50)) == list(two.packs(5, 50))
    assert layout(one) == layout(two)


def test_nothing_to_lay_out() -> None:
    tree = PrefixTree([])
    assert (tree.tokens, tree.longest, tree.text_of, list(tree.packs(8, 8))) == (0, 0, [], [])


# Token ids above 255 sort as numbers, not by their low byte.
def test_large_token_ids() -> None:
    texts = [[70_000, 256], [70_000, 1], [255], [70_000, 256, 300_000]]
    tree = PrefixTree(texts, 0)
    assert [t.tolist() for t in tree.texts] == [[255], [70_000, 1], [70_000, 256, 300_000]]
    assert tree.text_of == [2, 1, 0, 2]
    with pytest.raises(OverflowError):
        PrefixTree([[-1]])


# 57 few-shot prompts with 40 questions and 4 letters each is a sixth of MMLU: a fraction of a second on one core.
def test_many_requests_are_laid_out_fast() -> None:
    rng = np.random.default_rng(0)
    heads = [rng.integers(0, 40_000, 500).tolist() for _ in range(57)]
    texts = [head + rng.integers(0, 40_000, 90).tolist() for head in heads for _ in range(40)]
    before = time.process_time()
    tree = PrefixTree(text for text in texts for _ in range(4))
    assert time.process_time() - before < 5
    assert tree.tokens < 57 * 500 + 57 * 40 * 90 + 1
    assert len(tree.text_of) == 4 * len(texts)
