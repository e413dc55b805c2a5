"""Work of rank 0 that may take hours: the other ranks wait without a limit, and the run goes on showing that it lives.

A plain message between ranks waits CONTROL_TIMEOUT seconds at most, so that a frozen rank is noticed. Here rank 0 says
every few seconds that it is still busy; a rank 0 that dies or is frozen as a whole is noticed as before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from sengi.errors import StorageError
from sengi.train.distributed import World
from sengi.train.run_folder import HEARTBEAT, RunFolder
from sengi.train.stopping import StopRequest


def on_first_patiently(
    world: World, work: Callable[[], Any], folder: RunFolder | None = None, stop: StopRequest | None = None
) -> Any:
    """Run ``work`` on rank 0 only, for as long as it takes; its JSON result, or its error, on every rank.

    A request to stop ends the work at once on rank 0: whatever is worth keeping was saved before.

    Args:
        world: the processes of the run; all call this together.
        work: must not talk to other ranks.
        folder: its status.json gets its heartbeat meanwhile; None before there is one.
        stop: the run's stop request; None before the run takes any.

    Raises:
        SengiError: what ``work`` raised, or the stop request.
    """
    if not world.first:
        while world.any(False):
            pass
        return world.on_first(lambda: None)
    result, failure = None, None
    with _signs_of_life(world, folder):
        try:
            with stop.at_once() if stop is not None else contextlib.nullcontext():
                result = work()
        except Exception as error:  # the others are told below
            failure = error
    world.any(False)

    def tell() -> Any:
        if failure is not None:
            raise failure
        return result

    return world.on_first(tell)


@contextlib.contextmanager
def _signs_of_life(world: World, folder: RunFolder | None) -> Any:
    """A thread that writes the heartbeat and answers the ranks that wait."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(HEARTBEAT):
            if folder is not None:
                with contextlib.suppress(StorageError):  # a missed heartbeat must not end the run
                    folder.status(now=False)
            try:
                world.any(True)
            except RuntimeError:  # another rank is gone; the next message to it fails on this rank, too
                return

    thread = threading.Thread(target=tell, name="signs-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
