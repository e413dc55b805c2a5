"""Random choices that are the same on every machine and in every Python version."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Stream:
    """One named source of choices under one seed.

    Of :class:`random.Random` Python promises only that ``random()`` keeps its sequence between versions, so
    every choice here is made from it. Streams with different names are independent: a new consumer of
    one stream leaves the others as they were.

    Args:
        seed: the world's seed.
        name: what the stream is for.
    """

    __slots__ = ("random",)

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"sengi-world/{seed}/{name}".encode()).digest()
        self.random = random.Random(int.from_bytes(digest[:16], "big")).random

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self.random() * n)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + int(self.random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[int(self.random() * len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new list with the items in random order (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = int(self.random() * (i + 1))
            out[i], out[j] = out[j], out[i]
        return out

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """``n`` items at different positions; ``n`` is small beside ``len(items)`` or the list is short."""
        size = len(items)
        if size <= 3 * n:
            return self.shuffled(items)[:n]
        chosen: list[int] = []
        while len(chosen) < n:
            i = int(self.random() * size)
            if i not in chosen:
                chosen.append(i)
        return [items[i] for i in chosen]
