from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.model.families import VOCAB, family
from tests.train.memory_run import ALONE, random_samples, small_recipe, write_store
from torch import nn

from sengi.data.packing import pack_step
from sengi.data.store import TokenStore
from sengi.errors import InputError, RecipeError
from sengi.model.memory import STATE_BYTES
from sengi.model.supervised import SupervisedModel, prepare
from sengi.recipe import Recipe
from sengi.recipe_sources import resolve_recipe
from sengi.train import checkpoint
from sengi.train.optimizer import build_optimizer
from sengi.train.optimizer_states import begun, check_optimizer, state_kinds
from sengi.train.snapshot import take
from sengi.train.step import run_step

OPTIMS = list(STATE_BYTES)


def skip_without_package(optim: str) -> None:
    if optim == "adamw_bnb_8bit":
        pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("states") / "store", random_samples(12, VOCAB))


def wide_model() -> SupervisedModel:
    """Some matrices above bitsandbytes' limit of 4,096 values, some below."""
    return prepare(copy.deepcopy(family("llama, tied")))


def train(store: TokenStore, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> float:
    loss = float("nan")
    for _ in range(steps):
        samples = torch.arange(12).numpy()
        packs = pack_step(store.lengths[samples], 100)
        loss = run_step(
            model, optimizer, store, samples, packs, recipe, ALONE, None, before_micro_batch=lambda *_: None
        ).loss
    return loss


@pytest.mark.parametrize("optim", OPTIMS)
def test_a_run_continues_bit_for_bit(store: TokenStore, tmp_path: Path, optim: str) -> None:
    skip_without_package(optim)
    recipe = small_recipe(optim=optim, learning_rate=1e-3)
    model = wide_model()
    optimizer = build_optimizer(model, recipe)
    train(store, model, optimizer, recipe, 2)
    save = checkpoint.Save(tmp_path, 2, ALONE, take(model, optimizer, ALONE, torch.float32), {}, {})
    save.write()
    save.publish(None)
    train(store, model, optimizer, recipe, 2)

    again = wide_model()
    other = build_optimizer(again, recipe)
    checkpoint.load(tmp_path / "checkpoint-2", again, other, ALONE)
    train(store, again, other, recipe, 2)
    for (name, wanted), (_, found) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(wanted, found), name
        kept, loaded = optimizer.state[wanted], other.state[found]
        assert kept.keys() == loaded.keys()
        for kind, value in kept.items():
            same = torch.equal(value, loaded[kind]) if isinstance(value, torch.Tensor) else value == loaded[kind]
            assert same, (name, kind)


@pytest.mark.parametrize("optim", OPTIMS[1:])
def test_fewer_bytes_learn_like_float32(store: TokenStore, optim: str) -> None:
    skip_without_package(optim)
    losses = {}
    for kind in (OPTIMS[0], optim):
        model = wide_model()
        recipe = small_recipe(optim=kind, learning_rate=3e-3)
        losses[kind] = train(store, model, build_optimizer(model, recipe), recipe, 8)
    start = train(store, wide_model(), torch.optim.SGD(wide_model().parameters(), lr=0.0), small_recipe(), 1)
    learned = start - losses[OPTIMS[0]]
    assert learned > 1
    assert losses[optim] == pytest.approx(losses[OPTIMS[0]], abs=0.1 * learned)


@pytest.mark.parametrize("optim", OPTIMS)
def test_states_take_the_bytes_that_the_forecast_counts(optim: str) -> None:
    skip_without_package(optim)
    model = nn.Linear(512, 512, bias=False)
    optimizer = build_optimizer(model, small_recipe(optim=optim))
    state = begun(optimizer, model.weight)
    size = sum(state[kind].nbytes for kind in state_kinds(optimizer, model.weight))
    assert size == pytest.approx(STATE_BYTES[optim] * model.weight.numel())


# Rounding is of the moments only: the first update is AdamW's own, to float32's rounding.
def test_bfloat16_moments_leave_the_first_update_alone() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(20, 30), nn.Linear(20, 30)]
    models[1].load_state_dict(models[0].state_dict())
    grads = [torch.randn_like(p) for p in models[0].parameters()]
    for model, optim in zip(models, OPTIMS[:2], strict=True):
        optimizer = build_optimizer(model, small_recipe(optim=optim, weight_decay=0.1, learning_rate=0.1))
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
        assert optimizer.state[model.weight]["exp_avg"].dtype == (torch.float32, torch.bfloat16)[optim == OPTIMS[1]]
    for one, two in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


# A second moment in bfloat16 follows a falling gradient at beta2 0.95 and 0.99; at 0.999 it would stand still.
def test_a_bfloat16_second_moment_follows_within_its_limit() -> None:
    for beta2, follows in ((0.95, True), (0.99, True), (0.999, False)):
        value = torch.ones(1, dtype=torch.bfloat16)
        for _ in range(1500):
            value = (value.float() * beta2).to(torch.bfloat16)
        assert (float(value) < 0.01) == follows, beta2
    with pytest.raises(RecipeError, match=r"adam_beta2 is 0.999, but a bfloat16 second moment.*at most 0.99"):
        resolve_recipe(None, values=small_recipe().model_dump() | {"optim": OPTIMS[1], "adam_beta2": 0.999})


def test_what_cannot_run_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(optim="adamw_bnb_8bit")
    with pytest.raises(InputError, match=r"optim is adamw_bnb_8bit and there are 2 processes.*adamw_anyprecision"):
        check_optimizer(recipe, 2)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs bitsandbytes; pip install 'sengi\[qlora\]'"):
        check_optimizer(recipe, 1)
    check_optimizer(small_recipe(optim="adamw_anyprecision"), 8)
