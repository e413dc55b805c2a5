"""Work that takes much memory of a machine, by as many of its ranks at a time as it has room for."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from sengi.model.cost import available_memory
from sengi.train.distributed import World, ranks_here

Result = TypeVar("Result")
SHARE = 0.8  # of the free memory of a machine


def in_turns(world: World, need: int, work: Callable[[], Result]) -> Result:
    """Run ``work`` on every rank; ranks on GPUs wait for each other where their machine cannot hold them all at once.

    On CPUs what the work leaves stays in the memory of the machine, so taking turns would save nothing.

    Args:
        world: the processes of the run; all call this together.
        need: bytes of the machine's memory that one rank takes while it works, and gives back.
        work: must not talk to other ranks.

    Raises:
        SengiError: the error of the lowest rank that failed, on all of them.
    """
    if world.size == 1 or world.device.type == "cpu":
        return work()
    here = ranks_here()
    room = int(SHARE * available_memory(torch.device("cpu"), 1) // max(1, need))
    at_once = max(1, min(world.gather(min(here, room))))
    mine = int(os.environ.get("LOCAL_RANK", "0")) // at_once
    results: list[Result] = []

    def take(turn: int) -> None:
        if turn == mine:
            results.append(work())

    for turn in range(-(-max(world.gather(here)) // at_once)):
        world.together(partial(take, turn))
    return results[0]
