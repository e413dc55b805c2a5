"""Two processes under the fork server that train one run, and one of them is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import crash_faults

from sengi.train import loop

if TYPE_CHECKING:
    from crash_server import Server

STEPS = 30
RAISES_AT = 8  # the step at which the rank of "raise" raises
SILENCE = {"freeze": "5"}  # seconds after which a frozen rank is lost; else the default


def become(rank: int, port: int, silence: str, raises: bool) -> None:
    """Make this process one of two ranks, as torchrun would."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), SENGI_RANK_TIMEOUT=silence)
    if raises:
        pack_step, calls = loop.pack_step, iter(range(1, STEPS + 1))

        def fail(*arguments: Any, **more: Any) -> Any:
            if next(calls) == RAISES_AT:
                raise ZeroDivisionError("a mistake on one rank")
            return pack_step(*arguments, **more)

        loop.pack_step = fail


def lose(server: Server, child: Callable[..., Any], verb: str, victim: int, port: int) -> dict[str, Any]:
    """Start two ranks, lose one while they train, look how both end, and continue the run on one.

    Args:
        server: of the recipe.
        child: its class of processes.
        verb: ``kill``, ``freeze`` or ``raise``.
        victim: the rank it happens to.
        port: where the ranks meet.
    """
    name = f"{verb}-{victim}"
    recipe, run = server.recipe(name, STEPS, keep=2), server.root / name / "run"
    ranks = [
        child(recipe, None, partial(become, rank, port, SILENCE.get(verb, "20"), verb == "raise" and rank == victim))
        for rank in (0, 1)
    ]
    ranks[0].wait_for("saved", 2)
    if verb != "raise":
        os.kill(ranks[victim].pid, signal.SIGKILL if verb == "kill" else signal.SIGSTOP)
    began = time.monotonic()
    ends = [rank.end() for rank in ranks]
    seconds = time.monotonic() - began
    status = json.loads((run / "status.json").read_text())
    good = crash_faults.newest_good(run)
    # what a lost rank leaves is what any kill leaves: one look whether one process can go on from it is enough
    code = child(server.recipe(name, STEPS)).end()[0] if (verb, victim) == ("kill", 1) else 0
    return {
        "codes": [code for code, _ in ends],
        "errors": [[value for event, value in told if event in ("error", "traceback")] for _, told in ends],
        "pids": [rank.pid for rank in ranks],
        "seconds": seconds,
        "status": [status["state"], status["reason"]],
        "saved": max(value for event, value in ends[0][1] if event == "saved"),
        "good": good,
        "continued": code,
    }
