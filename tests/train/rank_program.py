"""What each process does under torchrun in test_distributed.py: words between ranks, then whole runs.

    torchrun --nproc-per-node N rank_program.py OUT RECIPE.json ...

Many runs share one launch, because starting the processes costs more than a small run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sengi.errors import DataError, MaskError, SengiError
from sengi.recipe_sources import resolve_recipe
from sengi.train.distributed import World, end_world, start_world
from sengi.train.run import train


def outcome(work: Callable[[], Any]) -> dict[str, Any]:
    """What a call of a rank ended with."""
    try:
        return {"value": work()}
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error), "elsewhere": getattr(error, "elsewhere", None)}


def talk(world: World) -> dict[str, Any]:
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
        "after": world.gather(world.rank),  # nobody is left waiting: the next word works
    }


def main() -> None:
    """Talk, then train."""
    out, *recipes = sys.argv[1:]
    world = start_world()
    report = talk(world)
    end_world()
    Path(out, f"rank-{world.rank}.json").write_text(json.dumps(report))
    for number, recipe in enumerate(recipes, start=1):
        # torch gives each restart of the processes a name space of its own; a new group needs one, too
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        train(resolve_recipe(recipe))


if __name__ == "__main__":
    main()
