from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import warm
from tests.model.families import VOCAB, family
from tests.model.tiny_folder import write_tiny_folder
from tests.train import out_of_memory_program as program
from tests.train.crash_harness import content, dynamics, write_rows
from tests.train.memory_run import ALONE, random_samples, small_recipe, write_store
from tests.train.rank_program import free_ports
from tests.train.told import Told

from sengi.data.packing import pack_step
from sengi.errors import SengiError
from sengi.model.checkpointing import transformer_layers
from sengi.model.supervised import prepare
from sengi.recipe_sources import resolve_recipe
from sengi.train import evaluation
from sengi.train.optimizer import build_optimizer
from sengi.train.out_of_memory import MemoryGuard, StepOutOfMemory, is_out_of_memory, smaller_budget
from sengi.train.run import train
from sengi.train.step import run_step

BUDGET = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    write_tiny_folder(folder / "model")
    write_rows(folder / "train.jsonl", 0, 40)
    return folder


def write_recipe(folder: Path, name: str, **more: Any) -> Path:
    values: dict[str, Any] = {
        "model_name_or_path": str(folder / "model"),
        "data": [{"path": str(folder / "train.jsonl")}],
        "output_dir": str(folder / name),
        "effective_batch_size": 20,
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "max_tokens_per_device": BUDGET,
        "dtype": "float32",
        "save_steps": 2,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values | more))
    return path


def without_note(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "max_tokens_reduced_to"} for line in lines]


def plan(run: Path) -> dict[str, Any]:
    return json.loads((run / "plan.json").read_text())


def assert_same_run(one: Path, two: Path) -> None:
    """Bit for bit: the log but for clocks, weights and moments."""
    assert without_note(dynamics(one)) == without_note(dynamics(two))
    last = dynamics(one)[-1]["step"]
    ours, theirs = (content(run / f"checkpoint-{last}") for run in (one, two))
    for name in ours:
        if name.endswith(".safetensors"):
            assert ours[name] == theirs[name], name


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np.exceptions.__dict__.get("_ArrayMemoryError", MemoryError)("Unable to allocate 3 GiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_what_allocators_say_is_understood(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


# What does not become less with smaller micro-batches ends the run, with what helps.
@pytest.mark.parametrize(("verb", "what"), [("zero_grad", "the gradients"), ("step", "the optimizer's update")])
def test_no_memory_for_what_every_step_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, what: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError(program.SAID)

    store = write_store(tmp_path / "store", random_samples(4, VOCAB))
    model = prepare(copy.deepcopy(family("llama")))
    optimizer = build_optimizer(model, small_recipe())
    monkeypatch.setattr(optimizer, verb, full)
    with pytest.raises(SengiError, match=rf"out of memory in {what} \(DefaultCPUAllocator: .* use_peft: true$"):
        step(model, optimizer, store, np.arange(4), pack_step(store.lengths, 60), MemoryGuard(model, ALONE))


def test_what_this_allocator_says_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


# A micro-batch fails in the middle: weights, moments and gradients are as if the step had not begun.
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_failing_micro_batch_leaves_no_trace(tmp_path: Path, where: str) -> None:
    store = write_store(tmp_path / "store", random_samples(12, VOCAB))
    samples, packs = np.arange(12), pack_step(store.lengths, 60)
    results = []
    for fails in (True, False):
        model = prepare(copy.deepcopy(family("llama")))
        optimizer, guard = build_optimizer(model, small_recipe()), MemoryGuard(model, ALONE)
        if fails:
            program.fail_at(transformer_layers(model)[0], where, 2)
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            with pytest.raises(StepOutOfMemory, match=r"rank 0: DefaultCPUAllocator") as caught:
                step(model, optimizer, store, samples, packs, guard)
            assert caught.value.tokens == int(store.lengths[packs.ranks[0][1]].sum())
            assert caught.value.samples == len(packs.ranks[0][1])
            assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
            assert not optimizer.state
        results.append(step(model, optimizer, store, samples, packs, guard))
        results.append({name: p.detach() for name, p in model.named_parameters()})
    assert (results[0].loss, results[0].grad_norm) == (results[2].loss, results[2].grad_norm)
    assert all(torch.equal(value, results[3][name]) for name, value in results[1].items())


def step(model: Any, optimizer: Any, store: Any, samples: Any, packs: Any, guard: MemoryGuard) -> Any:
    recipe = small_recipe()
    return run_step(
        model, optimizer, store, samples, packs, recipe, ALONE, None, guard, before_micro_batch=lambda *_: None
    )


def test_another_error_is_not_taken_for_it(tmp_path: Path) -> None:
    guard = MemoryGuard(torch.nn.Linear(2, 2), ALONE)

    def broken() -> torch.Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        guard.micro_batch(broken, broken, (1, 1))


def test_the_budget_is_halved_down_to_the_longest_sample() -> None:
    lengths = np.array([30, 20, 10, 10, 10])
    packs = pack_step(lengths, 1000)
    assert smaller_budget(packs, lengths, 30) == 40  # half of the pack, not of a budget that nothing fills
    assert smaller_budget(packs, lengths, 70) == 70
    assert smaller_budget(packs, lengths, 80) is None
    assert smaller_budget(pack_step(lengths, 30), lengths, 30) is None


# The first step fails: the run is bit for bit the one that had the smaller budget from the start, it says so, and a
# continued run keeps it.
def test_a_run_goes_on_with_smaller_micro_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, told = write_recipe(folder, "fails"), Told()
    fail_once(monkeypatch, call=1)
    train(resolve_recipe(recipe), told)
    found = plan(folder / "fails")
    assert found["max_tokens_reduced_from"] == BUDGET
    assert found["max_tokens_per_device"] < BUDGET
    note = next(text for text in told.messages if "out of memory" in text)
    assert note.startswith(f"step 1: out of memory with micro-batches of up to {BUDGET} tokens (rank 0: Default")
    assert "the same samples and gradient" in note
    notes = [line.get("max_tokens_reduced_to") for line in dynamics(folder / "fails")]
    assert notes == [found["max_tokens_per_device"], None, None, None]
    monkeypatch.undo()
    train(resolve_recipe(write_recipe(folder, "small", max_tokens_per_device=found["max_tokens_per_device"])))
    assert_same_run(folder / "fails", folder / "small")
    # continued in the middle: the recipe's budget is the one that failed, and is not tried again
    shutil.rmtree(folder / "fails" / "checkpoint-4")
    train(resolve_recipe(recipe))
    assert plan(folder / "fails")["max_tokens_per_device"] == found["max_tokens_per_device"]
    assert_same_run(folder / "fails", folder / "small")


def fail_once(monkeypatch: pytest.MonkeyPatch, call: int, every: bool = False) -> None:
    import sengi.train.run as module

    load = module._load

    def loaded(*args: Any) -> Any:
        loop = load(*args)
        layer = transformer_layers(loop.model)[-1]
        for number in range(call, call + 50) if every else [call]:
            program.fail_at(layer, "forward", number)
        return loop

    monkeypatch.setattr(module, "_load", loaded)


def test_held_out_loss_follows_the_smaller_micro_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[int] = []
    losses = evaluation.heldout_losses

    def told(model: Any, store: Any, budget: int, *rest: Any) -> Any:
        budgets.append(budget)
        return losses(model, store, budget, *rest)

    monkeypatch.setattr(evaluation, "heldout_losses", told)
    fail_once(monkeypatch, call=1)
    train(resolve_recipe(write_recipe(folder, "scored", eval_data=str(folder / "train.jsonl"), max_steps=1)))
    assert budgets == [BUDGET, plan(folder / "scored")["max_tokens_per_device"]]


def test_where_not_even_a_sample_fits_the_error_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_once(monkeypatch, call=1, every=True)
    with pytest.raises(SengiError, match="cannot be smaller than the longest sample") as caught:
        train(resolve_recipe(write_recipe(folder, "never")))
    text = str(caught.value)
    for words in ("step 1: out of memory (rank 0:", "train.jsonl:", "tokens; the forecast was", "checkpoint is safe"):
        assert words in text
    assert "set gradient_checkpointing: full and run the same command again" in text
    assert json.loads((folder / "never" / "status.json").read_text())["state"] == "failed"
    with pytest.raises(SengiError, match=r"use_peft: true, a smaller model or more processes"):
        train(resolve_recipe(write_recipe(folder, "never", gradient_checkpointing=True)))


def launch(folder: Path, jobs: list[dict[str, Any]], ranks: int = 0) -> subprocess.CompletedProcess[str]:
    paths = []
    for number, (job, port) in enumerate(zip(jobs, free_ports(len(jobs)), strict=True)):
        path = folder / f"job-{ranks}-{number}.json"
        path.write_text(json.dumps(job | ({"port": port} if ranks else {})))
        paths.append(str(path))
    command = [str(Path(__file__).with_name("out_of_memory_program.py")), *paths]
    return warm.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, ranks=ranks)


# The real thing: the address space ends, PyTorch's allocator says so, and the run finishes with the same samples.
def test_a_real_limit_of_the_address_space(folder: Path) -> None:
    write_rows(folder / "many.jsonl", 0, 1000)
    more = {"data": [{"path": str(folder / "many.jsonl")}], "effective_batch_size": 1000, "max_steps": 1}
    free = write_recipe(folder, "free", max_tokens_per_device=4000, **more)
    tight = write_recipe(folder, "tight", max_tokens_per_device=1_000_000, gradient_checkpointing="none", **more)
    done = launch(folder, [{"recipe": str(free)}, {"recipe": str(tight), "room": 110 << 20}])
    assert done.returncode == 0, done.stderr[-3000:]
    assert plan(folder / "tight")["max_tokens_reduced_from"] == 1_000_000
    for ours, theirs in zip(dynamics(folder / "tight"), dynamics(folder / "free"), strict=True):
        assert ours["samples_sha256"] == theirs["samples_sha256"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


# One rank of two fails, between collectives that the other waits in: both drop the step and do it again.
def test_a_rank_that_fails_takes_the_others_along(folder: Path) -> None:
    faults = {
        "forward": {"rank": 1, "where": "forward", "call": 1, "layer": 0},
        "backward": {"rank": 0, "where": "backward", "call": 1, "layer": 0},
        "last": {"rank": 1, "where": "backward", "call": 2, "layer": -1},
    }
    jobs = []
    for name, fault in faults.items():
        budget = BUDGET if name != "last" else 150  # several micro-batches a rank
        recipe = write_recipe(folder, f"two-{name}", max_steps=2, max_tokens_per_device=budget)
        same = write_recipe(folder, f"two-{name}-small", max_steps=2)
        jobs.append({"recipe": str(recipe), "fault": fault})
        jobs.append({"recipe": str(same), "budget_of": str(folder / f"two-{name}")})
    done = launch(folder, jobs, 2)
    assert done.returncode == 0, done.stderr[-4000:]
    for name in faults:
        assert plan(folder / f"two-{name}")["max_tokens_reduced_from"], name
        assert plan(folder / f"two-{name}-small")["max_tokens_reduced_from"] is None
        assert_same_run(folder / f"two-{name}", folder / f"two-{name}-small")
