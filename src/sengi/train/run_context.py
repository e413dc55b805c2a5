"""What every part of a run is given: one object in the place of five arguments handed from function to function."""

from __future__ import annotations

from dataclasses import dataclass

from sengi.train.distributed import World
from sengi.train.observer import Observer
from sengi.train.run_folder import RunFolder
from sengi.train.setup import Setup
from sengi.train.stopping import StopRequest


@dataclass
class RunContext:
    """One run in one process.

    Attributes:
        setup: recipe, store, order and plan; replaced where a step that ran out of memory makes micro-batches smaller.
        world: the processes of the run.
        observer: told of everything that happens.
        stop: whether a signal or a file has asked to stop.
        folder: the run folder; only rank 0 writes.
    """

    setup: Setup
    world: World
    observer: Observer
    stop: StopRequest
    folder: RunFolder
