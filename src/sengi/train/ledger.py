"""The ledger: the samples of any step, derived from recipe and data, and proved against the run's own record."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sengi import storage
from sengi.errors import InputError
from sengi.recipe_sources import resolve_recipe
from sengi.train.distributed import World
from sengi.train.observer import Observer
from sengi.train.run_folder import check_same_data, read_plan
from sengi.train.setup import open_data


def samples_digest(samples: NDArray[np.int64]) -> str:
    """Hash of a step's store indices in order, as dynamics.jsonl keeps it: 16 hexadecimal digits."""
    return hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest()[:16]


def step_ledger(run: Path, step: int) -> tuple[list[str], bool]:
    """The samples of ``step`` as ``file:row``, in training order, and whether the run's record confirms them.

    Raises:
        InputError: no such run or step, the data changed since, or the record says something else.
    """
    if not (run / "recipe.yaml").exists():
        raise InputError(f"{run}: no run folder (recipe.yaml is missing); give the output_dir of a recipe")
    resolved = resolve_recipe(run / "recipe.yaml")
    _, store, steps = open_data(resolved, World(0, 1, torch.device("cpu")), Observer(), read_plan(run))
    check_same_data(run, store.fingerprint)
    if not 1 <= step <= steps.num_steps:
        raise InputError(f"--step {step}: this run has steps 1 to {steps.num_steps}")
    samples = steps.step_samples(step)
    record = next((line for line in storage.read_lines(run / "dynamics.jsonl") if line["step"] == step), None)
    if record is not None and record["samples_sha256"] != samples_digest(samples):
        raise InputError(f"{run}: dynamics.jsonl has other samples in step {step}; the folder or the data was changed")
    return [store.place(int(index)) for index in samples], record is not None
