"""What fewer bytes of optimizer state do to a run: the same training with each ``optim``.

    python -m benchmarks.optimizer_states [--json] [--steps 60] [--seeds 2]

A Llama of about 1M parameters learns a generated world (docs/generated-world.md) from random weights. Runs of another
``seed`` see the same data in another order: their spread is what chance alone does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.small_model import make_small_model
from benchmarks.table import Table, show
from sengi.model.memory import STATE_BYTES
from sengi.recipe_sources import resolve_recipe
from sengi.train.run import train
from sengi.world.write import write_world

SAMPLES, BATCH = 2000, 64


def one_run(folder: Path, optim: str, seed: int, steps: int) -> tuple[float, float, float]:
    """Mean training loss of the last ten steps, held-out loss, mean gradient norm of the last ten steps."""
    run = folder / f"{optim}-{seed}"
    values: dict[str, Any] = {
        "model_name_or_path": str(folder / "model"),
        "data": [{"path": str(path)} for path in sorted((folder / "world" / "train").glob("*.jsonl"))],
        "eval_data": [{"path": str(folder / "world" / "eval" / "heldout.jsonl")}],
        "output_dir": str(run),
        "effective_batch_size": BATCH,
        "learning_rate": 2e-3,
        "max_steps": steps,
        "eval_samples": None,
        "dtype": "float32",
        "optim": optim,
        "seed": seed,
    }
    train(resolve_recipe(None, values=values))
    lines = [json.loads(line) for line in (run / "dynamics.jsonl").read_text().splitlines()][-10:]
    scores = sorted((run / "evaluations").glob("*heldout.json"))[-1]
    heldout = next(s["value"] for s in json.loads(scores.read_text())["scores"] if s["group"] == "all")
    return (
        sum(line["loss"] for line in lines) / len(lines),
        heldout,
        sum(line["grad_norm"] for line in lines) / len(lines),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args(arguments)
    rows: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory(prefix="sengi-optim-") as name:
        folder = Path(name)
        write_world(folder / "world", SAMPLES, 1)
        files = [str(path) for path in sorted((folder / "world" / "train").glob("*.jsonl"))]
        parameters = make_small_model(folder / "model", files, 2048, 128, 4)
        for seed in range(given.seeds):
            rows += [(optim, seed, *one_run(folder, optim, seed, given.steps)) for optim in STATE_BYTES]
    note = f"{parameters:,} parameters, {given.steps} steps of {BATCH} samples, learning rate 2e-3, beta2 0.95, float32"
    columns = ("optim", "seed", "loss, last 10 steps", "held-out loss", "gradient norm, last 10 steps")
    show([Table("The same training with each optimizer state", columns, rows, [note])], given.json)


if __name__ == "__main__":
    main()
