"""A whole step on a GPU: the gradients are those of the CPU, and one that finds no memory changes nothing.

The CPU takes the GPU's place as well where there is none, so that what is asked here is always asked.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.model.families import VOCAB, family
from tests.train.memory_run import random_samples, small_recipe, write_store
from torch import Tensor

from sengi.data.packing import pack_step
from sengi.data.store import TokenStore
from sengi.model.supervised import SupervisedModel, prepare
from sengi.train.distributed import World
from sengi.train.optimizer import build_optimizer
from sengi.train.out_of_memory import StepOutOfMemory
from sengi.train.step import StepResult, run_step

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda", 0), marks=[pytest.mark.cuda, NO_GPU])]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("gpu") / "store", random_samples(24, VOCAB, longest=120))


def model_on(device: torch.device) -> SupervisedModel:
    return prepare(copy.deepcopy(family("llama"))).to(device)


def take_step(
    store: TokenStore, model: SupervisedModel, device: torch.device, autocast: Any, budget: int
) -> StepResult:
    recipe = small_recipe(learning_rate=1e-3, max_grad_norm=0.0)
    packs = pack_step(store.lengths, budget, attention_cost=0.01, halves=True)
    optimizer, everything, world = build_optimizer(model, recipe), np.arange(len(store)), World(0, 1, device)
    return run_step(
        model, optimizer, store, everything, packs, recipe, world, autocast, before_micro_batch=lambda *_: None
    )


def weights(model: SupervisedModel) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("autocast", "rounding"), [(None, 1e-3), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("device", DEVICES)
def test_a_step_is_the_same_on_every_device(
    store: TokenStore, device: torch.device, autocast: torch.dtype | None, rounding: float
) -> None:
    expected = take_step(store, model_on(torch.device("cpu")), torch.device("cpu"), None, 10_000)
    model = model_on(device)
    before = weights(model)
    found = take_step(store, model, device, autocast, 200)
    assert found.loss == pytest.approx(expected.loss, rel=rounding)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=rounding)
    assert any(not torch.equal(value, before[name]) for name, value in weights(model).items())


@pytest.mark.cuda
@NO_GPU
def test_a_step_without_memory_on_a_gpu_changes_nothing_and_is_done_again(store: TokenStore) -> None:
    device = torch.device("cuda", 0)
    model = model_on(device)
    before = weights(model)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(device) / total, device)
    try:
        with pytest.raises(StepOutOfMemory):
            take_step(store, model, device, None, 10_000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    again = take_step(store, model, device, None, 200)
    assert again.loss == pytest.approx(take_step(store, model_on(device), device, None, 10_000).loss, rel=1e-4)
