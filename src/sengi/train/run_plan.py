"""The plan of a run: every number that follows from the recipe and the data, before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sengi.data.packing import StepPacks, pack_step
from sengi.data.packs import computed_work
from sengi.data.phases import RunOrder
from sengi.data.store import TokenStore
from sengi.errors import InputError
from sengi.model.checkpointing import Dial
from sengi.model.cost import ModelCost
from sengi.model.memory import STATE_BYTES
from sengi.recipe import Recipe, default_reason
from sengi.recipe_sources import ResolvedRecipe
from sengi.train import compiling
from sengi.train.memory_fit import LOOK_AT, READ, Fit
from sengi.train.plan_warnings import of_compiling, of_data, of_dtype, of_lora

QUEUE = 2  # checkpoints that may wait for the second process before training waits for it: they need disk
# Share of the peak that a forecast assumes: on 2 CPU cores at 135M 0.68 was measured in float32 and 0.60 in bfloat16
# (docs/results/throughput.md); for GPUs peers publish 0.28 to 0.41, nothing was measured here
CPU_EFFICIENCY, CPU_EFFICIENCY_HALF, GPU_EFFICIENCY = 0.68, 0.6, 0.35
# What the layers do again: their forward pass is a third of forward and backward
AGAIN = {"none": 0.0, "selective": 0.0, "full": 1 / 3}
FORECAST = ("forecast_seconds", "memory", "checkpoint_bytes", "disk_bytes")
NOTABLE = (
    "effective_batch_size",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "loss_reduction",
    "dtype",
    "max_tokens_per_device",
    "gradient_checkpointing",
    "torch_compile",
)


@dataclass(frozen=True)
class RunPlan:
    """Batch arithmetic, packing and forecasts of one run on this machine.

    Attributes:
        samples: samples in the store; ``epoch_samples`` counts weights in.
        steps: optimizer steps; the last holds ``last_step_samples``.
        max_tokens_per_device: the token budget in use; ``max_tokens_reduced_from`` the one that an earlier step of this
            run had no memory for.
        gradient_checkpointing: the dial in use.
        torch_compile: whether layers are compiled.
        memory: the forecast of one process at its highest (model/memory.py).
        packs_per_step: mean micro-batches of a step over all ranks; ``pack_fill`` is the share of the budget used.
        tokens: tokens of the whole run; ``flops`` the floating-point operations of those that are computed.
        forecast_seconds: rough training time, or None where the peak of the device is not known.
        checkpoint_bytes: size of one checkpoint; ``disk_bytes`` of all that are kept at once.
        phases: one entry a phase (data/phases.py); a stacked run has one.
    """

    samples: int
    epoch_samples: int
    steps: int
    steps_per_epoch: float
    last_step_samples: int
    world_size: int
    device: str
    dtype: str
    max_tokens_per_device: int
    max_tokens_reduced_from: int | None
    gradient_checkpointing: Dial
    torch_compile: bool
    memory: dict[str, Any]
    packs_per_step: float
    pack_fill: float
    tokens: int
    supervised_tokens: int
    parameters: int
    trained_parameters: int
    flops: float
    peak_flops: float | None
    forecast_seconds: float | None
    checkpoint_bytes: int
    disk_bytes: int
    disk_free: int
    data_fingerprint: str
    data: dict[str, Any]
    origins: dict[str, str]
    reasons: dict[str, str]
    phases: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)

    def samples_seen(self, step: int) -> int:
        """Samples seen after ``step``; those of earlier phases count in full."""
        return sum(
            min(phase["samples"], max(0, step - phase["first_step"] + 1) * phase["effective_batch_size"])
            for phase in self.phases
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as kept in plan.json."""
        values = asdict(self)
        values["forecast"] = {name: values.pop(name) for name in FORECAST}
        return values


def make_plan(
    resolved: ResolvedRecipe,
    store: TokenStore,
    steps: RunOrder,
    cost: ModelCost,
    *,
    fitted: Fit,
    dtype: torch.dtype,
    dtype_reason: str,
    world_size: int,
    device: torch.device,
    peak: float | None,
    earlier: dict[str, Any] | None,
) -> RunPlan:
    """Work out the plan.

    Args:
        earlier: plan.json of the run that is continued: what it chose stays.

    Raises:
        InputError: a sample does not fit the token budget, or the checkpoints would not fit the disk.
    """
    recipe, budget = resolved.recipe, fitted.budget
    longest = int(store.lengths.max())
    place = store.place(int(store.lengths.argmax()))
    if cost.context is not None and longest > cost.context:
        raise InputError(
            f"max_length is {recipe.max_length:,} and {place} has {longest:,} tokens, but this model was made for "
            f"{cost.context:,}; lower max_length to {cost.context:,}"
        )
    if longest > budget:
        raise InputError(
            f"max_tokens_per_device is {budget:,}, but {place} has {longest:,} tokens; raise max_tokens_per_device "
            "or lower max_length"
        )
    looked = steps.some_steps(LOOK_AT)
    packs = [
        pack_step(store.lengths[steps.step_samples(k)], budget, world_size, cost.attention_cost, halves=True)
        for k in looked
    ]
    slots = sum(len(rank) for step in packs for rank in step.ranks)
    squares = steps.total_of(store.lengths.astype(np.float64) ** 2)
    tokens, targets = int(steps.total_of(store.lengths)), int(steps.total_of(store.supervised))
    share, of_squares = _computed_shares(store, steps, looked, packs)
    computed, squares = int(share * tokens), of_squares * squares
    flops = cost.flops(computed, targets, squares)
    done = flops + AGAIN[fitted.dial] * cost.flops(computed, 0, squares)
    on_cpu = CPU_EFFICIENCY if dtype == torch.float32 else CPU_EFFICIENCY_HALF
    efficiency = on_cpu if device.type == "cpu" else GPU_EFFICIENCY
    speed = (peak or 0) * efficiency * world_size  # the peak of one: of its GPU, or of its share of a CPU's cores
    seconds = done / speed if speed else None
    begun = bool(earlier.get("torch_compile")) if earlier else None
    compiled, compile_reason = compiling.decide(recipe, begun, device, dtype, seconds, fitted.dial)
    exported = 4 if cost.adapter else dtype.itemsize
    checkpoint = int(cost.trained * (4 + STATE_BYTES[recipe.optim] + exported)) + (20 << 20)
    selects = recipe.phasing.select != "last"
    # one in the making, and where a score chooses the best so far, which may be an old one
    kept = min(recipe.save_total_limit or 10**9, _saves(recipe, steps)) + 1 + selects
    if recipe.eval_tasks and recipe.eval_process == "second":
        kept = min(kept + QUEUE, _saves(recipe, steps) + 1)  # those that wait to be scored
    folder = next(
        p for p in (Path(recipe.output_dir).resolve(), *Path(recipe.output_dir).resolve().parents) if p.exists()
    )
    plan = RunPlan(
        samples=len(store),
        epoch_samples=steps.epoch_size,
        steps=steps.num_steps,
        steps_per_epoch=sum(phase.plan.epoch_size / phase.plan.batch_size for phase in steps.phases),
        last_step_samples=steps.phases[-1].plan.last_step_size,
        world_size=world_size,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        max_tokens_per_device=budget,
        max_tokens_reduced_from=fitted.reduced_from,
        gradient_checkpointing=fitted.dial,
        torch_compile=compiled,
        memory=(fitted.compiled if compiled else fitted.memory).to_dict(),
        packs_per_step=slots / len(packs),
        pack_fill=sum(step.tokens for step in packs) / (slots * budget),
        tokens=tokens,
        supervised_tokens=targets,
        parameters=cost.parameters,
        trained_parameters=cost.trained,
        flops=flops,
        peak_flops=peak,
        forecast_seconds=seconds,
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * kept,
        disk_free=shutil.disk_usage(folder).free,
        data_fingerprint=store.fingerprint,
        data=store.summary(),
        origins=dict(resolved.origins),
        reasons=_reasons(resolved, dtype_reason, compile_reason),
        phases=steps.summary(),
        warnings=[
            *fitted.notes,
            *of_data(recipe, steps, store),
            *of_dtype(recipe, device),
            *of_compiling(recipe, compiled, compile_reason),
            *of_lora(resolved, cost),
        ],
    )
    existing = sum(f.stat().st_size for f in Path(recipe.output_dir).glob("checkpoint-*/**/*") if f.is_file())
    if plan.disk_bytes > plan.disk_free + existing:
        raise InputError(
            f"{folder}: {kept} checkpoints of {checkpoint / 1e9:.2f} GB need {plan.disk_bytes / 1e9:.2f} GB, "
            f"{plan.disk_free / 1e9:.2f} GB are free; free space, lower save_total_limit or choose another output_dir"
        )
    return plan


def _computed_shares(
    store: TokenStore, steps: RunOrder, looked: Sequence[int], packs: Sequence[StepPacks]
) -> tuple[float, float]:
    """Shares of tokens and squared lengths that go through the layers, by some packs: they are lean (data/packs.py)."""
    found: list[NDArray[np.int64]] = []
    for number, step in zip(looked, packs, strict=True):
        samples = steps.step_samples(number)
        found += [samples[pack] for rank in step.ranks for pack in rank if len(pack)]
    some = found[:: -(-len(found) // READ)]
    tokens, squares = np.array([computed_work(store.samples(members)) for members in some], np.float64).sum(axis=0)
    lengths = store.lengths[np.concatenate(some)].astype(np.float64)
    return float(tokens / lengths.sum()), float(squares / (lengths**2).sum())


def _saves(recipe: Recipe, steps: RunOrder) -> int:
    """Checkpoints of the whole run, at most: those of saving and, with eval_tasks, of evaluation points."""
    saves = _times(recipe.save_steps, recipe.save_samples, steps) + len(steps.phases) - 1
    if recipe.eval_tasks or recipe.phasing.select != "last":
        saves += _times(recipe.eval_steps, recipe.eval_samples, steps)
    return min(steps.num_steps, saves)


def _times(every_steps: int | None, every_samples: int | None, steps: RunOrder) -> int:
    if every_steps is not None:
        return -(-steps.num_steps // every_steps)
    return 1 + (steps.total_samples // every_samples if every_samples else 0)


def _reasons(resolved: ResolvedRecipe, dtype_reason: str, compile_reason: str) -> dict[str, str]:
    """Why each notable value that the user did not give is what it is."""
    reasons = {key: default_reason(key, resolved.recipe) for key in NOTABLE if key not in resolved.origins}
    if resolved.recipe.dtype == "auto":
        reasons["dtype"] = dtype_reason
    if resolved.recipe.torch_compile == "auto":
        reasons["torch_compile"] = compile_reason
    return reasons
