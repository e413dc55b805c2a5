from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.memory_run import random_samples, small_recipe, write_store

from sengi.data.packing import pack_step
from sengi.data.phases import RunOrder, run_order
from sengi.data.store import TokenStore
from sengi.errors import InputError
from sengi.model.checkpointing import Dial
from sengi.model.cost import ModelCost
from sengi.model.memory import MemoryForecast
from sengi.recipe_sources import ResolvedRecipe
from sengi.train.memory_fit import LOOK_AT, Fit
from sengi.train.run_plan import CPU_EFFICIENCY, RunPlan, make_plan

CPU = torch.device("cpu")
MEMORY, LESS = (MemoryForecast("the update", {"weights": size}, 10_000) for size in (4000, 3000))
COST = ModelCost(parameters=1000, linear=600, head=400, squared=60.0, activation_bytes=100)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("plan") / "store", random_samples(100, 99), ["a"] * 60 + ["b"] * 40)


def plan_of(
    store: TokenStore,
    folder: Path,
    cost: ModelCost = COST,
    world: int = 1,
    budget: int = 64,
    dial: Dial = "none",
    **values: Any,
) -> tuple[RunPlan, RunOrder]:
    recipe = small_recipe(
        **{"effective_batch_size": 7, "num_train_epochs": 3, "output_dir": str(folder / "run"), **values}
    )
    steps = run_order(recipe, store)
    plan = make_plan(
        ResolvedRecipe(recipe, dict.fromkeys(values, "--set")),
        store,
        steps,
        cost,
        fitted=Fit(dial, budget, None, MEMORY, LESS, ()),
        dtype=torch.float32,
        dtype_reason="because",
        world_size=world,
        device=CPU,
        peak=1e9,
        earlier=None,
    )
    return plan, steps


def test_the_forecast_is_that_of_compiled_layers_where_they_are(store: TokenStore, tmp_path: Path) -> None:
    assert plan_of(store, tmp_path)[0].memory == MEMORY.to_dict()
    assert plan_of(store, tmp_path, torch_compile=True)[0].memory == LESS.to_dict()


def test_batch_arithmetic(store: TokenStore, tmp_path: Path) -> None:
    plan, steps = plan_of(store, tmp_path)
    assert (plan.samples, plan.epoch_samples, plan.steps, plan.last_step_samples) == (100, 100, 43, 6)
    assert plan.steps_per_epoch == pytest.approx(100 / 7)
    # over whole epochs, tokens are exact
    everything = [index for step in range(1, steps.num_steps + 1) for index in steps.step_samples(step)]
    assert plan.tokens == int(store.lengths[everything].sum())
    assert plan.supervised_tokens == int(store.supervised[everything].sum())
    # what stands behind the last target is not computed; how much that is, some packs tell
    left = [int(np.flatnonzero(sample.loss_mask)[-1]) for sample in store.samples(everything)]
    computed, squares = sum(left), float(sum(n * n for n in left))
    assert computed < 0.96 * plan.tokens
    assert plan.flops == pytest.approx(COST.flops(computed, plan.supervised_tokens, squares), rel=0.01)
    assert plan.forecast_seconds == pytest.approx(plan.flops / 1e9 / CPU_EFFICIENCY)


# Rule: the peak is that of one process with its share of the cores, so two of them have twice as much.
def test_the_forecast_counts_all_processes(store: TokenStore, tmp_path: Path) -> None:
    one, two = (plan_of(store, tmp_path, world=world)[0] for world in (1, 2))
    assert one.forecast_seconds is not None
    assert two.forecast_seconds == pytest.approx(one.forecast_seconds / 2, rel=0.02)  # by other packs


def test_packs_are_those_that_training_makes(store: TokenStore, tmp_path: Path) -> None:
    # few enough steps that all are looked at
    plan, steps = plan_of(store, tmp_path, world=2, num_train_epochs=1)
    assert plan.steps <= LOOK_AT
    packs = [
        pack_step(store.lengths[steps.step_samples(k)], 64, 2, COST.attention_cost, halves=True)
        for k in range(1, plan.steps + 1)
    ]
    slots = [sum(len(rank) for rank in step.ranks) for step in packs]
    assert plan.packs_per_step == pytest.approx(sum(slots) / len(slots))
    assert plan.pack_fill == pytest.approx(int(store.lengths.sum()) / (sum(slots) * 64))
    assert 0.5 < plan.pack_fill <= 1


def test_notable_defaults_have_their_reasons(store: TokenStore, tmp_path: Path) -> None:
    plan, _ = plan_of(store, tmp_path, learning_rate=1e-5)
    # what the user set needs none, what was chosen for him has one
    assert "learning_rate" not in plan.reasons
    assert "arXiv 2412.13337" in plan.reasons["lr_scheduler_type"]
    assert plan.reasons["dtype"] == "because"
    assert all(plan.reasons.values())
    assert plan.origins["learning_rate"] == "--set"


def test_warnings(store: TokenStore, tmp_path: Path) -> None:
    quiet, _ = plan_of(store, tmp_path, effective_batch_size=10)
    assert quiet.warnings == []
    short, _ = plan_of(store, tmp_path)
    assert short.warnings == ["the last step is short: 6 of 7 samples"]


def test_drops_are_told(tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(store.meta, "dropped", {"overlong": 1200, "no_assistant_turn": 3})
    monkeypatch.setitem(store.meta, "truncated", 2)
    plan, _ = plan_of(store, tmp_path, effective_batch_size=10)
    assert plan.warnings[0].startswith("dropped 1,203 rows (1,200 overlong, 3 no_assistant_turn); listed in")
    assert plan.warnings[1] == "truncated 2 samples to 4,096 tokens"
    assert plan.data["dropped"] == {"overlong": 1200, "no_assistant_turn": 3}


def test_a_sample_longer_than_the_budget_is_named(store: TokenStore, tmp_path: Path) -> None:
    longest = int(store.lengths.max())
    row = int(store.lengths.argmax()) + 1
    plan_of(store, tmp_path, budget=longest)
    with pytest.raises(
        InputError, match=rf"device is {longest - 1}, but data\.jsonl:{row} has {longest} tokens; raise"
    ):
        plan_of(store, tmp_path, budget=longest - 1)


@pytest.mark.parametrize(
    ("values", "checkpoints"),
    [
        ({"save_steps": 10, "save_total_limit": 2}, 3),  # the new one is written before the old one goes
        ({"save_steps": 10, "save_total_limit": None}, 6),
        ({"save_steps": None, "save_samples": 100, "save_total_limit": None}, 5),
        ({"save_steps": None, "save_samples": None, "save_total_limit": 3}, 2),
        # an evaluation point of tasks has a checkpoint; a second process lets up to two more wait
        ({"save_steps": 10, "save_total_limit": None, "eval_steps": 25, "eval_tasks": ["mmlu"]}, 8),
        ({"save_steps": 10, "save_total_limit": 2, "eval_steps": 25, "eval_tasks": ["mmlu"]}, 3),
        (
            {
                "save_steps": 10,
                "save_total_limit": 2,
                "eval_steps": 25,
                "eval_tasks": ["mmlu"],
                "eval_process": "second",
            },
            5,
        ),
        ({"save_steps": 10, "save_total_limit": None, "eval_steps": 25}, 6),
    ],
)
def test_disk_is_what_all_kept_checkpoints_need(
    store: TokenStore, tmp_path: Path, values: dict[str, Any], checkpoints: int
) -> None:
    plan, _ = plan_of(store, tmp_path, **values)
    # weights and two moments in float32, the exported weights, and the tokenizer
    assert plan.checkpoint_bytes == 1000 * 16 + (20 << 20)
    assert plan.disk_bytes == checkpoints * plan.checkpoint_bytes


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_trained(store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"checkpoints of .* GB need .* GB, .* GB are free; free space, lower save_total"
    ):
        plan_of(store, tmp_path, cost=replace(COST, parameters=10**14))


def test_the_plan_is_plain_json(store: TokenStore, tmp_path: Path) -> None:
    plan, _ = plan_of(store, tmp_path)
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["forecast"]["checkpoint_bytes"] == plan.checkpoint_bytes
    assert values["steps"] == 43
    assert values["data"]["sources"]["a"]["samples"] == 60
    assert values["dtype"] == "float32"


# Recomputing the layers' forward pass takes a third more time; fewer bytes of optimizer state take less disk.
def test_dial_and_optimizer_are_in_the_forecasts(store: TokenStore, tmp_path: Path) -> None:
    plan, _ = plan_of(store, tmp_path)
    again, _ = plan_of(store, tmp_path, dial="full")
    layers = plan.flops - COST.flops(0, plan.supervised_tokens, 0)
    assert again.flops == plan.flops
    assert again.forecast_seconds == pytest.approx((plan.flops + layers / 3) / 1e9 / CPU_EFFICIENCY)
    assert again.gradient_checkpointing == "full"
    small, _ = plan_of(store, tmp_path, optim="adamw_bnb_8bit")
    assert plan.checkpoint_bytes - small.checkpoint_bytes == pytest.approx(6 * 1000, rel=0.01)
    assert plan.to_dict()["forecast"]["memory"] == {
        "moment": "the update",
        "parts": {"weights": 4000},
        "available": 10_000,
        "peak": 4000,
    }
