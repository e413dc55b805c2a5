"""Get answers for many requests: each question once, known ones from the cache, the rest shared by all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from tqdm import tqdm

from sengi.harness.ranks import Ranks, deal_out
from sengi.harness.response_cache import ResponseCache

Done = Callable[[Sequence[int], Sequence[Any]], None]  # (places, JSON answers), as they come
Progress = Callable[[int, int, str], None]  # (answered, all, kind)
Tell = Callable[[int, int], None]  # (answered, all)
Compute = Callable[[list[int], Done], None]  # answers the requests at those places, handing each answer to Done


@contextmanager
def progress_bar(report: Progress | None, kind: str, *, hidden: bool) -> Iterator[Tell]:
    """Who is told how far it is: the caller's function, else a bar as lm-eval's own classes show it.

    Args:
        report: the caller's function, called with (answered, all, kind).
        kind: of the requests.
        hidden: no bar.
    """
    if report is not None:
        yield lambda done, total: report(done, total, kind)
        return
    with tqdm(desc=f"Running {kind} requests", disable=hidden) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


class Answering:
    """Answers requests and counts where the answers came from.

    Args:
        cache: of this model, or None.
        ranks: the processes that share the work.

    Attributes:
        computed: answers that the model gave, on all processes together.
        served: answers that the cache knew.
    """

    def __init__(self, cache: ResponseCache | None, ranks: Ranks) -> None:
        self.computed = 0
        self.served = 0
        self._cache = cache
        self._ranks = ranks

    def answer(
        self,
        keys: Sequence[str],
        tokens_of: Callable[[int], Sequence[int]],
        compute: Compute,
        tell: Tell,
    ) -> list[Any]:
        """Answer requests.

        Args:
            keys: the name of each question; the same question has the same name.
            tokens_of: all token ids of the request at a place, to share the work fairly.
            compute: the engine.
            tell: called with (answered, all) while it goes on.

        Returns:
            A JSON answer for each request.

        Raises:
            NonFiniteError: the model gave NaN.
            RankError: another process failed.
        """
        first: dict[str, int] = {}
        for place, key in enumerate(keys):
            first.setdefault(key, place)
        found = self._known(first)
        missing = [place for key, place in first.items() if key not in found]
        share = deal_out(missing, tokens_of, self._ranks.size)[self._ranks.rank]
        begun = len(first) - len(missing)
        self.served += begun
        self.computed += len(missing)
        for part in self._ranks.together(lambda: self._compute(share, keys, compute, tell, begun)):
            found.update({keys[place]: answer for place, answer in part})
        return [found[key] for key in keys]

    def _known(self, wanted: dict[str, int]) -> dict[str, Any]:
        """What the caches of all processes know: on disks of their own they may know different answers."""
        cache, found = self._cache, dict[str, Any]()
        if cache is not None:
            for part in self._ranks.together(lambda: cache.known(wanted)):
                found.update(part)
        return found

    def _compute(
        self,
        share: list[int],
        keys: Sequence[str],
        compute: Compute,
        tell: Tell,
        begun: int,
    ) -> list[tuple[int, Any]]:
        answers: list[tuple[int, Any]] = []
        cache = self._cache

        def done(places: Sequence[int], results: Sequence[Any]) -> None:
            for place, answer in zip(places, results, strict=True):
                number = answer[0] if isinstance(answer, list) else 0.0
                answers.append((place, answer))
                if cache is not None and math.isfinite(number):  # JSON has no infinity
                    cache.put(keys[place], answer)
            tell(begun + len(answers), begun + len(share))

        if share:
            with cache.writing() if cache is not None else nullcontext():
                compute(share, done)
        else:
            tell(begun, begun)
        return answers
