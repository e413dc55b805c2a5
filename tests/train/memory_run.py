"""The parts of a run without files from outside: samples of random ids in a real store, and a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sengi.data.conversation import Conversation, Sample
from sengi.data.store import StoreOptions, TokenStore
from sengi.data.store_build import _Writer
from sengi.recipe import DataEntry, Recipe
from sengi.train.distributed import World

ALONE = World(0, 1, torch.device("cpu"))


def random_samples(count: int, vocab: int, longest: int = 30, seed: int = 0) -> list[Sample]:
    """Every sample has a supervised target, as a store guarantees; some end with tokens that are not supervised."""
    rng = np.random.default_rng(seed)
    samples = []
    for length in rng.integers(2, longest + 1, count):
        mask = (rng.random(length) < 0.6).astype(np.uint8)
        mask[rng.integers(1, length)] = 1
        samples.append(Sample(rng.integers(3, vocab, length).astype(np.int32), mask))
    return samples


def write_store(
    folder: Path, samples: Sequence[Sample], sources: Sequence[str] = (), phases: Sequence[str] = ()
) -> TokenStore:
    """A store of these samples, written by the code that writes all stores."""
    folder.mkdir(parents=True)
    writer = _Writer(folder, [DataEntry(path="data.jsonl")], [(0, Path("data.jsonl"))], StoreOptions(4096, "drop"))
    for row, sample in enumerate(samples):
        source = sources[row] if sources else "data"
        phase = phases[row] if phases else ""
        writer.add(0, Conversation((), source=source, phase=phase, file="data.jsonl", row=row + 1), sample)
    writer.finish("0" * 64, "")
    return TokenStore(folder)


def small_recipe(**values: Any) -> Recipe:
    """A recipe with the three keys that have no default."""
    return Recipe.model_validate(
        {"model_name_or_path": "m", "data": [{"path": "data.jsonl"}], "output_dir": "run", **values}
    )
