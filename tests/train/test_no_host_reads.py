"""A step asks the device for no value before its last backward pass: a GPU then computes a micro-batch while the CPU
lays out and copies the next one.

Attention on a CPU reads the bounds of the documents, which FlashAttention's kernel does not; a function that reads
nothing stands in for it here, and the test marked ``cuda`` tries the kernel itself.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tests.model.families import VOCAB, family
from tests.train.memory_run import ALONE, random_samples, small_recipe, write_store
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import sengi.model.attention as attention
from sengi.data.packing import pack_step
from sengi.data.store import TokenStore
from sengi.model.lora import add_adapter
from sengi.model.supervised import SupervisedModel, prepare
from sengi.train.distributed import World
from sengi.train.optimizer import build_optimizer
from sengi.train.step import run_step

BUDGET = 64
WAITS = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__")
WAITING_OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero")


class Reads(TorchDispatchMode):
    """Writes down, in their order, operations that read values on the host and backward passes that begin."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name == "index" and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name in WAITING_OPERATIONS or masked:
            self.events.append(name)
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """The same of methods of tensors that read memory of a CPU without an operation."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in WAITS or name == "backward":
            self.events.append(name)
        return func(*args, **(kwargs or {}))


def blind(
    query: Tensor, key: Tensor, value: Tensor, bounds: tuple[Tensor, Tensor], longest: int, scale: float, window: Any
) -> Tensor:
    """What FlashAttention's kernel computes, by masks that are made without reading a value."""
    of_queries, of_keys = bounds
    rows, columns = torch.arange(query.shape[2]), torch.arange(key.shape[2])
    documents = [torch.bucketize(at, ends[1:], right=True) for at, ends in ((rows, of_queries), (columns, of_keys))]
    # counted from the end: a document may have more keys than queries
    left = [ends[1:][document] - at for at, ends, document in zip((rows, columns), bounds, documents, strict=True)]
    seen = (documents[0][:, None] == documents[1][None, :]) & (left[0][:, None] <= left[1][None, :])
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale).transpose(
        1, 2
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    samples = random_samples(23, VOCAB)
    for sample in samples:  # a beginning in common, so that packs are lean
        sample.input_ids[:1] = 5
    return write_store(tmp_path_factory.mktemp("reads") / "store", samples)


@pytest.fixture
def without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "takes_flash", lambda *_: True)
    monkeypatch.setattr(attention, "_varlen", blind)


def take_step(
    store: TokenStore, model: SupervisedModel, world: World, autocast: torch.dtype | None, **more: Any
) -> Any:
    recipe = small_recipe(**more)
    packs = pack_step(store.lengths, BUDGET, attention_cost=0.01, halves=True)
    everything = np.arange(len(store))
    optimizer = build_optimizer(model, recipe)
    return run_step(
        model, optimizer, store, everything, packs, recipe, world, autocast, before_micro_batch=lambda *_: None
    )


@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize("adapter", [False, True])
def test_a_step_reads_nothing_before_its_last_backward_pass(
    store: TokenStore, without_bounds: None, reduction: str, adapter: bool
) -> None:
    lm = copy.deepcopy(family("llama"))
    if adapter:
        pytest.importorskip("peft", reason="needs the extra lora")
        add_adapter(lm, small_recipe(use_peft=True, lora_r=4))
    model = prepare(lm)
    with Reads() as operations, Methods(operations.events):
        take_step(store, model, ALONE, torch.bfloat16, loss_reduction=reduction)
    events = operations.events
    last = len(events) - 1 - events[::-1].index("backward")
    assert events.count("backward") > 3
    assert [name for name in events[:last] if name != "backward"] == []
    assert events[last + 1 :], "loss and norm are read at the end, or nothing is noticed"


def test_the_function_that_stands_in_computes_the_same(store: TokenStore, without_bounds: None) -> None:
    model = prepare(copy.deepcopy(family("llama")))
    ours = take_step(store, model, ALONE, None)
    with pytest.MonkeyPatch.context() as own:
        own.setattr(attention, "takes_flash", lambda *_: False)
        expected = take_step(store, prepare(copy.deepcopy(family("llama"))), ALONE, None)
    assert ours.loss == pytest.approx(expected.loss, rel=1e-6)
    assert ours.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)


def test_what_reads_is_noticed() -> None:
    values = torch.arange(4.0)
    for read in (
        lambda: values.sum().item(),
        lambda: values.tolist(),
        lambda: bool(values.any()),
        lambda: values[values > 1],
        lambda: values.nonzero(),
        lambda: list(itertools.islice(values.numpy(), 2)),
    ):
        with Reads() as operations, Methods(operations.events):
            read()
        assert operations.events


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_step_on_a_gpu_waits_once(store: TokenStore) -> None:
    """What waits raises, but for the end of a step: loss and norm."""
    device = torch.device("cuda", 0)
    model = prepare(copy.deepcopy(family("llama"))).to(device)
    waited: list[str] = []

    def no_waiting(number: int, members: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    recipe = small_recipe()
    packs = pack_step(store.lengths, BUDGET, attention_cost=0.01, halves=True)
    optimizer = build_optimizer(model, recipe)
    norm = torch.Tensor.tolist

    def read(tensor: Tensor) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        waited.append("tolist")
        return norm(tensor)

    try:
        with pytest.MonkeyPatch.context() as own:
            own.setattr(torch.Tensor, "tolist", read)
            world, everything = World(0, 1, device), np.arange(len(store))
            run_step(
                model, optimizer, store, everything, packs, recipe, world, torch.bfloat16, before_micro_batch=no_waiting
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waited == ["tolist"]
