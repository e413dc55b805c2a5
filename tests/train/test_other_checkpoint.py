"""A run folder or checkpoint of something else: named and refused before anything of it is used.

One of another number of processes is no obstacle: test_distributed.py moves a run over 1, 2, 2x2, 4 and 1 of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.train.linear_layers import LinearLayers
from tests.train.memory_run import ALONE
from torch import nn

from sengi.errors import CheckpointError, InputError
from sengi.recipe_sources import ResolvedRecipe, resolve_recipe
from sengi.train.checkpoint import Save, load
from sengi.train.run_folder import check_same_recipe
from sengi.train.snapshot import take


def recipe(folder: Path, **values: object) -> ResolvedRecipe:
    base = {"model_name_or_path": "m", "data": [{"path": "a.jsonl"}], "output_dir": str(folder)}
    return resolve_recipe(values=base | values)


# Rule: every key that decides the weights is compared, and every difference is shown.
def test_a_run_of_another_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe(tmp_path).to_yaml())
    other = recipe(tmp_path, learning_rate=1e-4, seed=7)
    assert check_same_recipe(tmp_path, other) == []  # nothing was trained yet: it may be corrected
    (tmp_path / "dynamics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match=r"another recipe \(learning_rate was 2e-05, is 0.0001; seed was 42, is 7\)"):
        check_same_recipe(tmp_path, other)


# Rule: what changes speed and memory only may change on the way, and is told.
def test_ways_to_shard_and_to_save_may_change(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe(tmp_path).to_yaml())
    (tmp_path / "dynamics.jsonl").write_text('{"step": 1}\n')
    other = recipe(
        tmp_path,
        fsdp_sharding_strategy="hybrid_shard",
        fsdp_reshard_after_forward=False,
        fsdp_gradient_reduction="step",
        save_in_background=False,
    )
    notes = check_same_recipe(tmp_path, other)
    assert "save_in_background was True, is now False" in notes
    assert len(notes) == 4


# Rule: a whole checkpoint whose tensors are not this model's, narrower, wider or fewer, is refused by the first one.
@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((2,), r"param\.0\.bias has 4 rows, the model has 2 rows"),
        ((8,), r"param\.0\.bias has 4 rows, the model has 8 rows"),
        ((4, 3), r"param\.1\.bias has none, the model has 3 rows"),
        ((), r"param\.0\.bias has 4 rows, the model has none"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, sizes: tuple[int, ...], text: str) -> None:
    def parts(*sizes: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = LinearLayers(4, *(sizes or (5,)))
        if not sizes:
            model.lm.insert(0, nn.Identity())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        return model, optimizer

    snapshot = take(*parts(4), ALONE, torch.float32)
    save = Save(tmp_path, 1, ALONE, snapshot, {}, {})
    save.write()
    folder = save.publish(None)
    with pytest.raises(CheckpointError, match=rf"{text}; this checkpoint belongs to another model"):
        load(folder, *parts(*sizes), ALONE)
