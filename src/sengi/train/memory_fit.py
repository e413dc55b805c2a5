"""Fit before launch: the checkpointing dial and the token budget that the memory forecast allows.

Rank 0 decides for all, by the free memory of the rank that has the least.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from functools import cache
from heapq import nlargest
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, PreTrainedModel

from sengi.data.packing import pack_step
from sengi.data.packs import computed_work
from sengi.data.phases import RunOrder
from sengi.data.store import TokenStore
from sengi.model.checkpointing import Dial
from sengi.model.cost import ModelCost, available_memory
from sengi.model.frozen_half import FLOAT32, stored_types
from sengi.model.inspect import weight_files
from sengi.model.live_bytes import PHASES, MicroBatch, trace_model
from sengi.model.lora import FOUR_BIT_BYTES, add_adapter, compute_in, stays_as_stored
from sengi.model.memory import (
    COMPILED,
    STATE_BYTES,
    UPDATE_COPIES,
    MemoryForecast,
    ModelSizes,
    Sharing,
    choose,
    forecast_memory,
)
from sengi.recipe import Recipe
from sengi.train.distributed import World, ranks_here
from sengi.train.optimizer import keeps_gradients
from sengi.train.schedule import save_is_due
from sengi.train.sharding import reduces_each_micro_batch

LOOK_AT = 16  # steps whose packs are looked at
READ = 32  # of these packs, those whose samples are read: how much of them is computed (data/packs.py)


@dataclass(frozen=True)
class Fit:
    """What a run will take.

    Attributes:
        dial: activation checkpointing.
        budget: tokens in a micro-batch.
        reduced_from: the budget that ran out of memory earlier in this run, or None.
        memory: the forecast; ``compiled`` that with compiled layers.
        notes: what the user should know of it.
    """

    dial: Dial
    budget: int
    reduced_from: int | None
    memory: MemoryForecast
    compiled: MemoryForecast
    notes: tuple[str, ...]


def fit(
    recipe: Recipe,
    folder: Path,
    store: TokenStore,
    steps: RunOrder,
    cost: ModelCost,
    dtype: torch.dtype,
    world: World,
    earlier: dict[str, Any] | None,
) -> Fit:
    """Choose what the recipe leaves open; all ranks call this together.

    Args:
        folder: of the model.
        dtype: of the computation.
        earlier: plan.json of the run that is continued: what it chose stays.
    """
    if recipe.optim == "adamw_bnb_8bit":
        importlib.import_module("bitsandbytes")  # loaded later otherwise, and not counted
    resident = resident_memory() if world.device.type == "cpu" else 0
    share = ranks_here() if world.device.type == "cpu" else 1
    free = min(world.gather(available_memory(world.device, share) + resident))

    shards = ranks_here() if recipe.fsdp_sharding_strategy == "hybrid_shard" else world.size
    sharing = Sharing(
        shards, recipe.fsdp_reshard_after_forward is False, reduces_each_micro_batch(recipe, world, cost.trained)
    )

    def decide() -> dict[str, Any]:
        forecaster = Forecaster(recipe, folder, store, steps, cost, dtype, world, sharing, resident, free)
        dial, budget, reduced = _settled(recipe, earlier)
        longest = int(store.lengths.max())
        known = _known(earlier, dial, budget, world, free)
        if known is not None and dial is not None and budget is not None:
            memory = compiled = known
        else:
            dial, budget = choose(dial, budget, longest, world.device, forecaster.forecast)
            memory, compiled = forecaster.forecast(dial, budget), forecaster.forecast(dial, budget, compiled=True)
        notes = forecaster.notes + ([] if memory.fits else [_does_not_fit(memory, dial, budget, longest)])
        chosen = {"dial": dial, "budget": budget, "reduced": reduced, "notes": notes}
        return chosen | {"memory": memory.__dict__, "compiled": compiled.__dict__}

    found = world.on_first(decide)
    memory, compiled = (MemoryForecast(**found[name]) for name in ("memory", "compiled"))
    return Fit(found["dial"], found["budget"], found["reduced"], memory, compiled, tuple(found["notes"]))


def _settled(recipe: Recipe, earlier: dict[str, Any] | None) -> tuple[Dial | None, int | None, int | None]:
    """Dial, budget and the budget that was given up, as far as recipe and earlier plan decide them."""
    dial = None if recipe.gradient_checkpointing == "auto" else recipe.gradient_checkpointing
    budget = recipe.max_tokens_per_device if isinstance(recipe.max_tokens_per_device, int) else None
    if earlier is None:
        return dial, budget, None
    reduced = earlier.get("max_tokens_reduced_from")
    if dial is None:
        dial = cast(Dial, earlier.get("gradient_checkpointing", "none"))
    if budget is None or budget == reduced:  # another value is an answer to the reduction
        return dial, int(earlier["max_tokens_per_device"]), reduced
    return dial, budget, None


def _known(
    earlier: dict[str, Any] | None, dial: Dial | None, budget: int | None, world: World, free: int
) -> MemoryForecast | None:
    """The forecast of the run that is continued, where it is of the same dial, budget and processes."""
    if earlier is None or "memory" not in earlier.get("forecast", {}) or earlier["max_tokens_reduced_from"] is not None:
        return None
    now = (dial, budget, world.size, str(world.device))
    then = tuple(earlier[key] for key in ("gradient_checkpointing", "max_tokens_per_device", "world_size", "device"))
    values = earlier["forecast"]["memory"]
    return MemoryForecast(values["moment"], values["parts"], free) if now == then else None


class Forecaster:
    """Memory forecasts of one run at any dial and budget."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        store: TokenStore,
        steps: RunOrder,
        cost: ModelCost,
        dtype: torch.dtype,
        world: World,
        sharing: Sharing,
        resident: int,
        available: int | None,
    ) -> None:
        self.recipe, self.store, self.steps, self.cost, self.world = recipe, store, steps, cost, world
        self.sharing = sharing
        self.config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.autocast = dtype if dtype != torch.float32 else None
        self.stays = stays_as_stored(folder, recipe, dtype)
        self.files, self.stored = sum(path.stat().st_size for path in weight_files(folder)), stored_types(folder)
        self.resident, self.available = resident, available
        self.notes: list[str] = []
        self.forecast = cache(self._forecast)
        self.micro_batch = cache(self._micro_batch)  # that of `none` is asked for at every dial

    def _forecast(self, dial: Dial, budget: int, compiled: bool = False) -> MemoryForecast:
        members, later, halved = self._largest_pack(budget)
        largest, whole = (self.micro_batch(members, one) for one in (dial, "none"))
        return forecast_memory(
            self._sizes(),
            largest.with_less(COMPILED) if compiled and dial == "none" else largest,
            again=whole.saved - largest.saved,
            later=later,
            sharing=replace(self.sharing, halved=halved),
            device=self.world.device,
            resident=self.resident,
            copied=self._exported() if self.recipe.save_in_background and self._saves_on_the_way() else None,
            available=self.available,
            half=self.autocast is not None,
        )

    def _largest_pack(self, budget: int) -> tuple[tuple[int, ...], float, bool]:
        """Samples of the micro-batch that computes most tokens, share of them in a rank's later ones, halves."""
        steps, store = self.steps, self.store
        budget = max(budget, int(store.lengths.max()))  # the plan refuses one that is smaller
        packs: dict[bool, list[tuple[int, tuple[int, ...]]]] = {False: [], True: []}  # a rank's first, and later ones
        halved = False
        for number in steps.some_steps(LOOK_AT):
            samples = steps.step_samples(number)
            found = pack_step(store.lengths[samples], budget, self.world.size, self.cost.attention_cost, halves=True)
            halved = halved or found.half is not None
            for rank in found.ranks:
                for turn, members in enumerate(samples[pack] for pack in rank if len(pack)):
                    packs[turn > 0].append((int(store.lengths[members].sum()), tuple(members.tolist())))
        firsts, laters = ([self._computed(members) for _, members in nlargest(READ, some)] for some in packs.values())
        largest = max(firsts + laters)
        return largest[1], max(laters, default=(0, ()))[0] / largest[0], halved

    def _computed(self, members: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Tokens of these samples that go through the layers, and which samples these are."""
        return computed_work(self.store.samples(members))[0], members

    def _exported(self) -> int:
        """Bytes of the weights of a checkpoint's files, where they are no part of its state (train/snapshot.py)."""
        size = 4 if self.recipe.use_peft or self.autocast is None else self.autocast.itemsize
        return 0 if self.world.size == 1 and size == 4 else self._sizes().trained * size

    def _saves_on_the_way(self) -> bool:
        """Whether a checkpoint is saved before the last step; for that one training is over."""
        return any(save_is_due(self.recipe, self.steps, step) for step in range(1, self.steps.num_steps))

    def _micro_batch(self, members: tuple[int, ...], dial: Dial) -> MicroBatch:
        samples = self.store.samples(members)
        try:
            how = (dial, self.world.device, self.autocast, keeps_gradients(self.world))
            return trace_model(self.config, self._adapt, samples, *how)
        except Exception as error:  # whatever a family's own code cannot do without numbers
            note = f"the forecast of activations is a rough guess: this model cannot be traced ({type(error).__name__})"
            self.notes = [note]
            rough = float(sum(len(sample.input_ids) for sample in samples) * self.cost.activation_bytes)
            return MicroBatch(rough, {**dict.fromkeys(PHASES, rough), PHASES[-1]: 0.0})

    def _adapt(self, lm: PreTrainedModel) -> None:
        if self.recipe.use_peft:
            add_adapter(lm, self.recipe)
            if self.autocast is not None:
                compute_in(lm, self.autocast)

    def _sizes(self) -> ModelSizes:
        cost, layers = self.cost, int(self.config.get_text_config().num_hidden_layers)
        linear = cost.linear * (self.autocast.itemsize if self.autocast else 4)
        whole = int(cost.linear * FOUR_BIT_BYTES) if self.recipe.load_in_4bit else 0
        outside = cost.parameters - cost.linear
        frozen = (0 if whole else linear) + 4 * outside if cost.adapter else 0
        return ModelSizes(
            trained=cost.trained,
            frozen_bytes=frozen,
            parameters=cost.parameters + cost.adapter,
            layers=layers,
            layer=cost.linear // layers,
            outside=outside,
            state_bytes=STATE_BYTES[self.recipe.optim],
            whole_bytes=whole,
            read_bytes=0 if whole else self._read_bytes(frozen),  # quantized layers are read one by one
            # the output embedding is the largest tensor; those of an adapter are small
            update_bytes=0 if cost.adapter else UPDATE_COPIES.get(self.recipe.optim, 0) * 4 * cost.head,
        )

    def _read_bytes(self, frozen: int) -> int:
        """Bytes of the model while it is read: its files as far as they are mapped, and what is made beside them."""
        if self.stored != {FLOAT32}:
            return self.files + 4 * (self.cost.parameters - self.cost.linear if self.stays else self.cost.parameters)
        return self.files + (frozen if self.autocast is not None else 0)


def resident_memory() -> int:
    """Bytes of this process in memory now; 0 where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _does_not_fit(memory: MemoryForecast, dial: Dial, budget: int, longest: int) -> str:
    cures = [] if budget <= longest else [f"max_tokens_per_device: {max(longest, budget // 2)}"]
    cures += [] if dial == "full" else ["gradient_checkpointing: full"]
    cures += ["optim: adamw_bnb_8bit, use_peft: true, a smaller model or more processes"]
    return (
        f"about {memory.peak / 1e9:,.2f} GB of memory will be needed and {(memory.available or 0) / 1e9:,.2f} GB can "
        f"be had: this run will probably not fit; set {'; or '.join(cures)}"
    )
