"""A run's model before its first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.model.families import VOCAB, small_model
from tests.model.tiny_folder import write_tiny_folder
from tests.train.memory_run import small_recipe
from torch import Tensor

from sengi.conversation import Sample
from sengi.data.packs import make_pack
from sengi.train.trainable import load_trainable

ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "Phi3Config",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 16,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
            },
        },
    ),
    "dynamic": (
        "LlamaConfig",
        {
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
}


def document(length: int) -> Sample:
    ids = np.random.default_rng(length).integers(3, VOCAB, length).astype(np.int32)
    return Sample(ids, np.ones(length, np.uint8))


# Rule: where positions depend on the longest document of a call, documents longer than that limit go one by one.
@pytest.mark.parametrize("rope", ROPES)
def test_a_long_document_does_not_change_a_short_one(rope: str, tmp_path: Path) -> None:
    config, values = ROPES[rope]
    lm = small_model(config, values)
    write_tiny_folder(tmp_path)
    lm.save_pretrained(tmp_path)
    setup = SimpleNamespace(
        resolved=SimpleNamespace(recipe=small_recipe()),
        plan=SimpleNamespace(dtype="float32", gradient_checkpointing="none"),
        model_folder=tmp_path,
        heldout=None,
    )
    short, long = (document(length) for length in (10, 40))

    def loss_of_the_short_one(longest: int, samples: list[Sample]) -> tuple[bool, Tensor]:
        setup.store = SimpleNamespace(lengths=np.array([longest]))
        model = load_trainable(cast(Any, setup)).model
        pack = make_pack(samples)
        return model.padding_free, model(pack, torch.ones(len(pack.targets)))[1][: int(short.loss_mask[1:].sum())]

    packed, alone = loss_of_the_short_one(10, [short])
    assert packed
    one_by_one, beside = loss_of_the_short_one(40, [short, long])
    assert not one_by_one
    assert torch.allclose(alone, beside, atol=1e-5)
