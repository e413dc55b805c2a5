"""Several processes that answer the requests of one evaluation: each takes a share, all get all answers.

lm-eval can deal documents out to processes itself, but it gathers what they found with pickle, and neighbours that
share a prompt prefix land on different processes. Here every process asks lm-eval for all documents and the *requests*
are dealt out, neighbours together; lm-eval sees one process with all answers. Messages are JSON, never pickle.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist

from sengi import collective

PATIENCE = datetime.timedelta(hours=24)  # shares take unequal time; a process that dies is noticed at once


class Ranks(Protocol):
    """What is asked of a group of processes; the World of a training run is one too."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def together(self, work: Callable[[], Any]) -> list[Any]:
        """Run ``work`` on every rank; JSON results by rank, or an error on all of them."""


@dataclass(frozen=True)
class Alone:
    """A group of one."""

    rank: int = 0
    size: int = 1

    def together(self, work: Callable[[], Any]) -> list[Any]:
        """The result of ``work``."""
        return [work()]


@dataclass(frozen=True)
class TorchRanks:
    """Processes that torchrun started.

    Attributes:
        rank: number of this process.
        size: number of processes.
        group: a gloo group; it works beside NCCL.
    """

    rank: int
    size: int
    group: Any

    def together(self, work: Callable[[], Any]) -> list[Any]:
        """Run ``work`` on every rank.

        Returns:
            JSON results by rank.

        Raises:
            SengiError: the error of the lowest rank that failed; RankError for any other exception elsewhere.
        """
        return collective.together(work, self.rank, self.size, self.group)


_joined: list[TorchRanks] = []  # the group that this process joined here, once for its life


def join_ranks() -> Ranks:
    """Join the processes that torchrun started, or stay alone; every later call gives the same group.

    A process in a group that others made (a training that evaluates on one rank) stays alone: waiting for ranks that
    do something else would never end.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
        _joined[:] = [TorchRanks(rank, size, dist.group.WORLD)]
    return _joined[0] if _joined and dist.is_initialized() else Alone()


def on_first(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """Run ``work`` on rank 0 while the others wait; all of them must call this.

    Returns:
        Its JSON result, on all ranks.

    Raises:
        SengiError: as ``together`` of the ranks.
    """
    return ranks.together(lambda: work() if ranks.rank == 0 else None)[0]


def deal_out(places: Sequence[int], tokens_of: Callable[[int], Sequence[int]], size: int) -> list[list[int]]:
    """Deal requests out so that all processes have about the same work and neighbours stay together.

    Requests are laid in lexicographic order, where those with a common prefix are neighbours. The work of one is what
    its left neighbour has not computed: its tokens after their common prefix.

    Args:
        places: the requests.
        tokens_of: all token ids of the request at a place.
        size: number of processes.

    Returns:
        For each process the places of its requests, rising.
    """
    if size == 1:
        return [list(places)]
    rows = {place: np.asarray(tokens_of(place), dtype=">u4") for place in places}  # big-endian bytes sort as numbers
    order = sorted(places, key=lambda place: rows[place].tobytes())
    work = np.empty(len(order))
    previous = np.empty(0, dtype=">u4")
    for number, place in enumerate(order):
        row = rows[place]
        length = min(len(row), len(previous))
        differs = np.flatnonzero(row[:length] != previous[:length])
        work[number] = len(row) - (differs[0] if len(differs) else length) + 1
        previous = row
    middle = np.cumsum(work) - work / 2
    owner = np.minimum(size - 1, (middle * size / max(1.0, work.sum())).astype(int))
    return [sorted(place for number, place in enumerate(order) if owner[number] == rank) for rank in range(size)]
