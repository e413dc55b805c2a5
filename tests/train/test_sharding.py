"""How a model is split: what the keys decide. That no way of splitting changes a result is in test_distributed.py."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.model.tiny_folder import write_tiny_folder
from tests.train.memory_run import ALONE, small_recipe
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

from sengi.conversation import Sample
from sengi.data.packs import make_pack
from sengi.errors import RecipeError
from sengi.model import lora
from sengi.model.load import load_model
from sengi.model.supervised import prepare
from sengi.train import sharding, snapshot
from sengi.train.distributed import World
from sengi.train.optimizer import build_optimizer
from sengi.train.sharding import device_mesh, place, reduce_gradients, reduces_each_micro_batch, transformer_layers
from sengi.train.snapshot import snapshot_bytes


class Told(World):
    """A world whose other ranks say what the test wants."""

    def gather(self, value: Any) -> list[Any]:
        return [value, *[4] * (self.size - 1)]

    def any(self, flag: bool) -> bool:
        return flag


CPU = torch.device("cpu")


# Rule: on one process there is nothing to split and nothing to reduce.
def test_one_process_is_not_sharded(tmp_path: Path) -> None:
    recipe = small_recipe(fsdp_sharding_strategy="hybrid_shard")
    assert device_mesh(ALONE, recipe) is None
    model = prepare(load_model(write_tiny_folder(tmp_path / "base")))
    place(model, CPU, None, recipe)
    assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert not reduces_each_micro_batch(small_recipe(), ALONE, 10**15)


# Rule: auto reduces once a step as long as whole float32 gradients take a quarter of the device at most.
@pytest.mark.parametrize(
    ("asked", "parameters", "expected"),
    [("auto", 1000, False), ("auto", 1001, True), ("step", 10**12, False), ("micro_batch", 1, True)],
)
def test_when_gradients_are_reduced(
    asked: str, parameters: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "_memory", lambda _: 16_000)
    recipe = small_recipe(fsdp_gradient_reduction=asked)
    assert reduces_each_micro_batch(recipe, Told(0, 2, CPU), parameters) is expected


# Rule: hybrid sharding needs the same number of ranks on each machine.
def test_uneven_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"the machines have \[2, 4\] processes; start the same number on each"):
        device_mesh(Told(0, 6, CPU), small_recipe(fsdp_sharding_strategy="hybrid_shard"))


# Rule: the last micro-batch reduces between all; an earlier one within a machine at most.
@pytest.mark.parametrize(
    ("last", "each", "scatters", "reduces"),
    [(True, True, True, True), (True, False, True, True), (False, True, True, False), (False, False, False, False)],
)
def test_what_a_micro_batch_sends(last: bool, each: bool, scatters: bool, reduces: bool) -> None:
    said: dict[str, bool] = {}

    class Sharded(FSDPModule):
        def __new__(cls) -> Sharded:
            return object.__new__(cls)

        def set_requires_gradient_sync(self, value: bool, *, recurse: bool = True) -> None:
            said.update(scatters=value, reduces=value)

        def set_requires_all_reduce(self, value: bool, *, recurse: bool = True) -> None:
            said.update(reduces=value and said["scatters"])

    reduce_gradients(Sharded(), last, each)  # type: ignore[arg-type]
    assert said == {"scatters": scatters, "reduces": reduces}
    reduce_gradients(nn.Linear(1, 1), last, each)  # not sharded: nothing to say


# Rule: 4-bit weights stay as bitsandbytes made them; all else is split. Scales lie beside them, and a split half of the
# bytes would be multiplied out with the scales of the whole.
def test_quantized_weights_stay_whole(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = small_recipe(use_peft=True, load_in_4bit=True, lora_r=2)
    with warnings.catch_warnings(action="ignore"):
        lm = lora.load_frozen(write_tiny_folder(tmp_path / "base"), recipe, torch.float32)
        lora.add_adapter(lm, recipe)
    model = prepare(lm)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        place(model, CPU, init_device_mesh("cpu", (1,)), recipe)
        kinds = {name: isinstance(parameter, DTensor) for name, parameter in model.named_parameters()}
    finally:
        torch.distributed.destroy_process_group()
    quantized = {name for name in kinds if name.endswith("proj.base_layer.weight")}
    assert len(quantized) == 14
    assert {name for name, split in kinds.items() if not split} == quantized
    assert all(hasattr(model.get_parameter(name), "quant_state") for name in quantized)


@contextmanager
def one_of(ranks: int, kind: str) -> Iterator[DeviceMesh]:
    """The mesh of so many ranks, of which this process is the first and the others do not exist."""
    distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield init_device_mesh(kind, (ranks,))
    finally:
        distributed.destroy_process_group()


# Rule: to be placed, ranks need not talk: those of a machine do it in turns. Each keeps its share.
def test_placing_talks_to_nobody_and_keeps_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepare(load_model(write_tiny_folder(tmp_path / "base")))
    for name in ("all_gather_into_tensor", "all_reduce", "broadcast", "barrier", "scatter"):
        monkeypatch.setattr(distributed, name, lambda *_, **__: pytest.fail("a rank talks while it is placed"))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    with one_of(4, "cpu") as mesh:
        place(model, CPU, mesh, small_recipe())
        kept = {name: parameter.to_local().numel() for name, parameter in model.named_parameters()}  # type: ignore[attr-defined]
    assert sum(kept.values()) == pytest.approx(sum(sizes.values()) / 4, rel=0.02)
    assert all(kept[name] < sizes[name] for name in sizes)


# Rule: a GPU never holds the whole model of several ranks, but its shards and one layer.
@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_never_holds_the_whole_model() -> None:
    config = LlamaConfig(vocab_size=1000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=16)
    model = prepare(LlamaForCausalLM(config))
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with one_of(8, "cuda") as mesh:
        place(model, torch.device("cuda", 0), mesh, small_recipe())
        assert torch.cuda.max_memory_allocated() - before < size / 8 + 2.5 * size / 16
        assert all(parameter.is_cuda for parameter in model.parameters())


# Rule: asking how much a copy takes leaves no trace, also right after held-out loss, which leaves parameters whole.
def test_the_size_of_a_snapshot_makes_no_moments(tmp_path: Path) -> None:
    recipe = small_recipe(fsdp_reshard_after_forward=False)
    model = prepare(load_model(write_tiny_folder(tmp_path / "base")))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        place(model, CPU, init_device_mesh("cpu", (1,)), recipe)
        optimizer = build_optimizer(model, recipe)
        pack = make_pack([Sample(np.arange(4, 12, dtype=np.int32), np.ones(8, np.uint8))])
        sizes = []
        for _ in range(2):
            with torch.no_grad():
                model(pack, torch.ones(7))
            assert not all(isinstance(parameter, DTensor) for parameter in model.parameters())
            sizes.append(snapshot_bytes(model, optimizer, ALONE, torch.float32))
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        assert set(optimizer.state) <= set(model.parameters())
    finally:
        torch.distributed.destroy_process_group()
    assert sizes[0] == sizes[1] == 4 + 12 * sum(parameter.numel() for parameter in model.parameters())


def test_page_locked_copies_are_counted_as_they_lie_in_memory() -> None:
    assert [snapshot._host_bytes(n, True) for n in (0, 1, 1024, 1025)] == [0, 1, 1024, 2048]
    assert snapshot._host_bytes(1025, False) == 1025


def test_the_layers_are_the_longest_list() -> None:
    model = nn.ModuleDict({"few": nn.ModuleList([nn.Identity()]), "layers": nn.ModuleList([nn.Identity()] * 3)})
    assert len(transformer_layers(model)) == 3
    assert len(transformer_layers(nn.Linear(1, 1))) == 0
