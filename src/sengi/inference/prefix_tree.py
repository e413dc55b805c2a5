"""Token sequences that begin alike, laid out so that every shared beginning is computed once.

The sequences form a compressed prefix tree: a node is a run of tokens that the same sequences have in common. The
nodes lie one after another in depth-first order (the *layout*), so the tokens that a node can see are always the
path from the root to the node before it: whoever walks the layout has to keep one path and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_SAVED = 4  # tokens; a node costs about as much time as computing one or two tokens (measured on the CPU)


class Span(NamedTuple):
    """A node, or a piece of a node that is longer than a pack.

    Attributes:
        begin: place of its first token in the layout.
        depth: position of that token in its sequence, which is the number of tokens before it on its path.
        length: tokens.
        text: index of a sequence that runs through it.
    """

    begin: int
    depth: int
    length: int
    text: int


@dataclass(frozen=True, slots=True)
class Pack:
    """Consecutive spans of the layout, computed in one forward call."""

    begin: int
    spans: tuple[Span, ...]

    @property
    def end(self) -> int:
        """Place in the layout after the last token."""
        return self.spans[-1].begin + self.spans[-1].length


class PrefixTree:
    """The prefix tree of token sequences.

    Attributes:
        texts: the distinct sequences that are no beginning of another one; sorted by their tokens, big-endian.
        text_of: for each sequence given, the index of the text that it is (or is the beginning of).
        tokens: tokens of the layout, which is what has to be computed.

    Args:
        sequences: token ids, none empty.
        min_saved: a beginning becomes a node of its own where that saves so many tokens; 0 shares every token.
            None shares nothing: every text is a root.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], min_saved: int | None = MIN_SAVED) -> None:
        keys = [np.asarray(ids, dtype=np.uint32).astype(">u4").tobytes() for ids in sequences]
        distinct = sorted(set(keys))  # bytes of big-endian numbers compare as the numbers do
        last = len(distinct) - 1
        whole = [i == last or not distinct[i + 1].startswith(key) for i, key in enumerate(distinct)]
        texts = np.cumsum(whole) - np.asarray(whole, dtype=np.int64)  # a beginning sorts right before what it begins
        place = dict(zip(distinct, texts.tolist(), strict=True))
        self.text_of: list[int] = [place[key] for key in keys]
        self.texts = [np.frombuffer(key, ">u4") for key, kept in zip(distinct, whole, strict=True) if kept]
        self._lay_out(min_saved)

    @property
    def longest(self) -> int:
        """Tokens of the longest path."""
        return max(map(len, self.texts), default=0)

    def rows(self, text: int, first: int, last: int) -> list[range]:
        """Places in the layout of the positions ``first`` to ``last`` (exclusive) of a text, deepest node first."""
        found: list[range] = []
        node = self._leaf[text]
        while last > first:
            start = self._first[node]
            if start < last:
                low = max(start, first)
                found.append(range(self._begin[node] + low - start, self._begin[node] + last - start))
                last = low
            node = self._parent[node]
        return found

    def packs(self, batch_tokens: int, batch_keys: int) -> Iterator[Pack]:
        """The layout in pieces for one forward call each, in order.

        Args:
            batch_tokens: tokens of a piece; fewer where the keys do not allow it and at the end.
            batch_keys: most keys that the spans of a piece see together, each its whole path; a piece of one span may
                see more.
        """
        spans: list[Span] = []
        size = keys = 0
        for begin, first, last, text in zip(self._begin, self._first, self._last, self._text, strict=True):
            depth = first
            while depth < last:
                # A node is cut where the piece is full: kernels that are made for a shape find the same one each time.
                length = min(last - depth, batch_tokens - size)
                if spans and (not length or keys + depth + length > batch_keys):
                    yield Pack(spans[0].begin, tuple(spans))
                    spans, size, keys = [], 0, 0
                    continue
                spans.append(Span(begin + depth - first, depth, length, text))
                size, keys, depth = size + length, keys + depth + length, depth + length
        if spans:
            yield Pack(spans[0].begin, tuple(spans))

    def nodes(self) -> Iterator[Pack]:
        """Every node as a pack of its own."""
        for begin, first, last, text in zip(self._begin, self._first, self._last, self._text, strict=True):
            yield Pack(begin, (Span(begin, first, last - first, text),))

    def token_ids(self, pack: Pack) -> NDArray[np.int64]:
        """Token ids of a pack, in the order of its spans."""
        parts = [self.texts[span.text][span.depth : span.depth + span.length] for span in pack.spans]
        return np.concatenate(parts).astype(np.int64)

    def _lay_out(self, min_saved: int | None) -> None:
        """Nodes in depth-first order, at every fork the longest path first.

        The longest path of all comes first, so that what does not fit in memory fails at once.
        """
        ends, owners, children = _forks(self.texts, shared=min_saved is not None)
        longest = _longest_paths(ends, children)
        self._begin: list[int] = []
        self._first: list[int] = []
        self._last: list[int] = []
        self._text: list[int] = []
        self._parent: list[int] = []
        self._leaf = [0] * len(self.texts)
        self.tokens = 0
        open_nodes = [(0, -1, 0)]  # node, parent in the layout, first position
        while open_nodes:
            node, parent, first = open_nodes.pop()
            below = children[node]
            if node and (not below or (ends[node] - first) * (len(below) - 1) >= (min_saved or 0)):
                self._begin.append(self.tokens)
                self._first.append(first)
                self._last.append(ends[node])
                self._text.append(owners[node])
                self._parent.append(parent)
                self.tokens += ends[node] - first
                parent, first = len(self._begin) - 1, ends[node]
                if not below:
                    self._leaf[owners[node]] = parent
            for child in sorted(below, key=lambda i: (longest[i], -owners[i])):  # the last one is taken first
                open_nodes.append((child, parent, first))


def _forks(texts: list[NDArray[np.uint32]], shared: bool) -> tuple[list[int], list[int], list[list[int]]]:
    """The tree of sorted texts, node 0 the empty root.

    Returns:
        By node: the position where it ends, a text that runs through it, and its children.
    """
    common = [0, *(_common_prefix(a, b) if shared else 0 for a, b in pairwise(texts))][: len(texts)]
    ends, owners, parents, path = [0], [-1], [-1], [0]

    def add(end: int, owner: int) -> int:
        ends.append(end)
        owners.append(owner)
        parents.append(path[-1])
        path.append(len(ends) - 1)
        return path[-1]

    for text, (ids, fork) in enumerate(zip(texts, common, strict=True)):
        below = -1
        while ends[path[-1]] > fork:
            below = path.pop()
        if ends[path[-1]] < fork:
            parents[below] = add(fork, text)
        add(len(ids), text)
    children: list[list[int]] = [[] for _ in ends]
    for node, parent in enumerate(parents[1:], start=1):
        children[parent].append(node)
    return ends, owners, children


def _common_prefix(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> int:
    """Tokens that two texts, neither the beginning of the other, begin with alike."""
    length = min(len(a), len(b))
    return int((a[:length] != b[:length]).argmax())


def _longest_paths(ends: list[int], children: list[list[int]]) -> list[int]:
    """By node: tokens of the longest path through it."""
    order = [0]
    for node in order:
        order.extend(children[node])
    longest = list(ends)
    for node in reversed(order):
        for child in children[node]:
            longest[node] = max(longest[node], longest[child])
    return longest
