"""The parts of a run without files from outside: samples of random ids in a real store, and a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sengi.conversation import Conversation, Sample
from sengi.data.store import StoreOptions, TokenStore
from sengi.data.store_write import Progress, Writer
from sengi.masks.batch import Block
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
    options = StoreOptions(4096, "drop")
    writer = Writer(folder, [DataEntry(path="data.jsonl")], [(0, Path("data.jsonl"))], options, Progress())
    conversations = [
        Conversation(
            (),
            source=sources[row] if sources else "data",
            phase=phases[row] if phases else "",
            file="data.jsonl",
            row=row + 1,
        )
        for row in range(len(samples))
    ]
    writer.add_batch([(0, conversation) for conversation in conversations], Block.of(samples))
    writer.finish("0" * 64, "", Counter())
    writer.close()
    return TokenStore(folder)


def small_recipe(**values: Any) -> Recipe:
    """A recipe with the three keys that have no default."""
    return Recipe.model_validate(
        {"model_name_or_path": "m", "data": [{"path": "data.jsonl"}], "output_dir": "run", **values}
    )
