"""What each process does in test_distributed.py: words between ranks, then whole runs.

    rank_program.py OUT SIZE[/HERE]:RECIPE.json[@STEP] ...    with the variables of torchrun

Many runs share one launch, because starting the processes costs more than a small run; a run of SIZE processes is
the work of the first SIZE of them. HERE makes them believe that so many are on each machine. With STEP the run is
continued from the checkpoint of that step: newer ones are removed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tests.warm import free_ports

from sengi import storage
from sengi.errors import DataError, MaskError, SengiError
from sengi.recipe_sources import resolve_recipe
from sengi.train import patience, setup, turns
from sengi.train.checkpoint import PREFIX
from sengi.train.distributed import World, end_world, start_world
from sengi.train.run import train
from sengi.train.run_folder import RunFolder
from sengi.train.stopping import StopRequest


def outcome(work: Callable[[], Any]) -> dict[str, Any]:
    """What a call of a rank ended with."""
    try:
        return {"value": work()}
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error), "elsewhere": getattr(error, "elsewhere", None)}


def long_work(world: World, out: Path, work: Callable[[], Any]) -> Any:
    """Work of rank 0 that lasts for many signs of life, while the others wait."""

    def slowly() -> Any:
        time.sleep(0.5)
        return work()

    patience.HEARTBEAT = 0.02
    return patience.on_first_patiently(world, slowly, RunFolder(out), StopRequest())


def turns_of(world: World, at_once: int, failing: int | None = None) -> list[float]:
    """When this rank worked, where the memory of its machine has room for so many ranks at once."""

    def work() -> list[float]:
        started = time.monotonic()
        if world.rank == failing:
            raise DataError("damaged weights")
        time.sleep(0.05)
        return [started, time.monotonic()]

    turns.available_memory = lambda *_: int(100 * at_once / turns.SHARE) + 1
    return turns.in_turns(replace(world, device=torch.device("cuda")), 100, work)


def talk(world: World, out: Path) -> dict[str, Any]:
    """Every verb of World, as this rank saw it."""
    last = world.size - 1

    def fail_on(ranks: tuple[int, ...], make: Callable[[], Exception]) -> Callable[[], Any]:
        def work() -> str:
            if world.rank in ranks:
                raise make()
            return f"done by {world.rank}"

        return work

    return {
        "place": [world.rank, world.size, world.first],
        "gather": world.gather({"rank": world.rank, "text": "ü" * (1 + 1000 * world.rank), "none": None}),
        "sum": float(world.sum(torch.tensor(float(world.rank + 1)))),
        "any": [world.any(False), world.any(world.rank == last), world.any(True)],
        "together": outcome(lambda: world.together(fail_on((), ValueError))),
        "on_first": outcome(lambda: world.on_first(lambda: {"by": world.rank})),
        "input error": outcome(lambda: world.together(fail_on((last,), lambda: DataError("a.jsonl:3: cut")))),
        "mask error": outcome(lambda: world.together(fail_on((last,), lambda: MaskError("why", "a.jsonl:4")))),
        "any error": outcome(lambda: world.together(fail_on((last,), lambda: ZeroDivisionError("by zero")))),
        "two errors": outcome(lambda: world.together(fail_on((0, last), lambda: SengiError(f"of {world.rank}")))),
        "first fails": outcome(lambda: world.on_first(fail_on((0,), lambda: OSError(28, "No space left")))),
        "patiently": outcome(lambda: long_work(world, out, lambda: {"by": world.rank})),
        "patiently fails": outcome(lambda: long_work(world, out, lambda: 1 / 0)),
        "turns": [turns_of(world, at_once) for at_once in (1, 2, 100)],
        "turns fail": outcome(lambda: turns_of(world, 1, failing=last)),
        "after": world.gather(world.rank),  # nobody is left waiting: the next word works
    }


def go_back(run: Path, step: int) -> None:
    """Remove the checkpoints after ``step``."""
    for folder in storage.published(run, PREFIX):
        if int(folder.name.removeprefix(PREFIX)) > step:
            storage.remove(folder)


def main() -> None:
    """Talk, then train."""
    setup.peak_flops = cache(setup.peak_flops)  # measured once for all runs
    out, *runs = sys.argv[1:]
    world = start_world()
    report = talk(world, Path(out))
    ports = world.on_first(lambda: free_ports(len(runs)))
    end_world()
    Path(out, f"rank-{world.rank}.json").write_text(json.dumps(report))
    for run, port in zip(runs, ports, strict=True):
        sizes, _, recipe = run.partition(":")
        size, _, here = sizes.partition("/")
        recipe, _, step = recipe.partition("@")
        if step and world.first:
            go_back(Path(resolve_recipe(recipe).recipe.output_dir), int(step))
        ended = Path(out, f"{port}.ended")
        if world.rank >= int(size):
            # not in the next run's rendezvous: who is early there looks again after seconds only
            while int(size) and not ended.exists():
                time.sleep(0.01)
            continue
        # a second group in the same processes must not meet the addresses of the first: a store of its own
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="False", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(WORLD_SIZE=size, LOCAL_WORLD_SIZE=here or size)
        try:
            train(resolve_recipe(recipe))
        finally:  # the others shall not wait for a run that failed
            if world.first:
                ended.touch()


if __name__ == "__main__":
    main()
