"""The order of the data of a whole run: one phase after another, each a :class:`StepPlan` over its own samples.

A stacked run is one phase that holds everything, so there is one way through a run, and phased training with a single
phase is stacked training bit for bit. Steps are numbered on through all phases. All of it is a pure function of data,
recipe and step, as a :class:`StepPlan` is (docs/decisions/001, 015).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sengi.data.columns import Value, read_column
from sengi.data.phase_split import check_names, split_samples
from sengi.data.plan import Int64s, StepPlan, sample_keys
from sengi.data.store import TokenStore
from sengi.errors import RecipeError
from sengi.recipe import Recipe

STACKED = "stacked"  # the one phase of a stacked run, as dynamics.jsonl names it
_REPLAY = 0x9E91A7  # with the seed decides which samples are replayed


@dataclass(frozen=True)
class Phase:
    """A stretch of a run over samples of its own.

    Attributes:
        name: as the recipe or the data gives it.
        recipe: of this phase: the run's, with what ``phases.settings`` changes.
        plan: order of its samples, which it counts from 0.
        members: store index of each of them, int64 (plan.num_samples,).
        own: how many of them are not replayed; those come first.
        first: optimizer steps of the run before it.
        seen: samples that all earlier phases have seen.
    """

    name: str
    recipe: Recipe
    plan: StepPlan
    members: Int64s
    own: int
    first: int
    seen: int

    @property
    def last(self) -> int:
        """Step of the run that ends it."""
        return self.first + self.plan.num_steps

    def samples_seen(self, step: int) -> int:
        """Samples that the run has seen after ``step``, a step of this phase or the last before it."""
        return self.seen + min((step - self.first) * self.plan.batch_size, self.plan.total_samples)


@dataclass(frozen=True)
class RunOrder:
    """All phases of a run, at least one."""

    phases: tuple[Phase, ...]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.phases[-1].last

    @property
    def total_samples(self) -> int:
        """Samples of the whole run."""
        return self.samples_seen(self.num_steps)

    @property
    def epoch_size(self) -> int:
        """Samples of one epoch of each phase, weights and replay counted in."""
        return sum(phase.plan.epoch_size for phase in self.phases)

    def number_at(self, step: int) -> int:
        """Place in :attr:`phases` of the phase that ``step`` (from 1) belongs to; 0 is before the first."""
        return bisect_left([phase.last for phase in self.phases[:-1]], step)

    def phase_at(self, step: int) -> Phase:
        """The phase that ``step`` (from 1) belongs to."""
        return self.phases[self.number_at(step)]

    def ends_phase(self, step: int) -> bool:
        """Whether ``step`` is the last of a phase; that of the run is."""
        return step == self.phase_at(step).last

    def step_samples(self, step: int) -> Int64s:
        """Store indices of step ``step`` (from 1), in training order.

        Raises:
            ValueError: no such step.
        """
        if not 1 <= step <= self.num_steps:
            raise ValueError(f"step {step} is outside 1..{self.num_steps}")
        phase = self.phase_at(step)
        return phase.members[phase.plan.step_samples(step - phase.first)]

    def samples_seen(self, step: int) -> int:
        """Samples seen after ``step``; those of earlier phases count in full, as in the paper."""
        return self.phase_at(step).samples_seen(step)

    def epoch_at(self, step: int) -> float:
        """Epochs of its phase seen after ``step``."""
        phase = self.phase_at(step)
        return phase.plan.epoch_at(step - phase.first)

    def total_of(self, values: NDArray[np.int64] | NDArray[np.float64]) -> float:
        """Sum over the whole run of a value that each sample of the store has, from the mean of each phase.

        Args:
            values: shape (samples of the store,).
        """
        return sum(
            float(values[phase.members].sum() * (phase.plan.total_samples / phase.plan.num_samples))
            for phase in self.phases
        )

    def summary(self) -> list[dict[str, Any]]:
        """What a plan says of each phase, as JSON values; steps are those of the run, warm-up in steps."""
        return [
            {
                "name": phase.name,
                "own_samples": phase.own,
                "replayed_samples": phase.plan.num_samples - phase.own,
                "epoch_samples": phase.plan.epoch_size,
                "num_train_epochs": phase.recipe.num_train_epochs,
                "effective_batch_size": phase.plan.batch_size,
                "learning_rate": phase.recipe.learning_rate,
                "lr_scheduler_type": phase.recipe.lr_scheduler_type,
                "warmup_steps": phase.recipe.warmup_count(phase.plan.num_steps),
                "samples": phase.plan.total_samples,
                "first_step": phase.first + 1,
                "last_step": phase.last,
            }
            for phase in self.phases
        ]

    def some_steps(self, count: int) -> list[int]:
        """At most ``count`` steps spread over the run, and the first step of each phase."""
        spread = np.linspace(1, self.num_steps, min(count, self.num_steps)).astype(int)
        return sorted({*spread.tolist(), *(phase.first + 1 for phase in self.phases)})


def run_order(recipe: Recipe, store: TokenStore, column: Callable[[str], Sequence[Value]] | None = None) -> RunOrder:
    """The order that a recipe asks for.

    Args:
        recipe: of the run.
        store: its training samples.
        column: what a column of the rows says of each sample; None reads it from the data files.

    Raises:
        DataError: a sample cannot be given a phase.
        RecipeError: phases or weights do not fit the data.
    """
    weights = [entry.weight for entry in recipe.data]
    if recipe.strategy == "stacked":
        groups = {STACKED: np.arange(len(store), dtype=np.int64)}
    else:
        groups = split_samples(recipe.phasing, store, recipe.seed, column or partial(read_column, store))
    return order_of(recipe, groups, store.entry_counts, weights)


def order_of(
    recipe: Recipe, groups: dict[str, Int64s], entry_counts: Sequence[int], weights: Sequence[float]
) -> RunOrder:
    """The order of samples that have their phases.

    Args:
        recipe: of the run.
        groups: name of each phase -> rising store indices of its own samples.
        entry_counts: samples of each data entry, in store order.
        weights: of each data entry, times an epoch.

    Raises:
        RecipeError: a phase has no sample, or ``phases`` asks for what there is not.
    """
    asked, names = recipe.phasing, list(groups)
    check_names(list(asked.settings), names, "settings")
    if asked.replay and len(groups) == 1:
        raise RecipeError(f"phases.replay is {asked.replay}, but '{names[0]}' is the only phase; set it to 0")
    entry_of = np.repeat(np.arange(len(entry_counts)), entry_counts)
    parts = []
    for number, (name, own) in enumerate(groups.items()):
        replayed = _replayed(recipe.seed, number, list(groups.values())[:number], asked.replay)
        counts = np.bincount(entry_of[own], minlength=len(weights)).tolist()
        entries = [*zip(counts, weights, strict=True), *([(len(replayed), 1.0)] if len(replayed) else [])]
        changes = asked.settings[name].model_dump(exclude_none=True) if name in asked.settings else {}
        changed = recipe.model_copy(update=changes)
        plan = StepPlan(
            num_samples=len(own) + len(replayed),
            batch_size=changed.effective_batch_size,
            num_epochs=changed.num_train_epochs,
            seed=recipe.seed | number << 32,  # the first phase's is that of a stacked run
            entries=entries,
        )
        if plan.epoch_size == 0:
            where = "" if name == STACKED else f" in phase '{name}'"
            raise RecipeError(f"data: the weights leave no sample{where}; raise a weight")
        parts.append((name, changed, plan, np.concatenate([own, replayed]), len(own)))
    limits = _shares([plan.num_steps for _, _, plan, _, _ in parts], recipe.max_steps)
    phases: list[Phase] = []
    for (name, changed, plan, members, count), limit in zip(parts, limits, strict=True):
        capped = StepPlan(plan.num_samples, plan.batch_size, plan.num_epochs, plan.seed, limit, plan.entries)
        before = phases[-1] if phases else None
        seen = before.samples_seen(before.last) if before else 0
        phases.append(Phase(name, changed, capped, members, count, before.last if before else 0, seen))
    return RunOrder(tuple(phases))


def _replayed(seed: int, number: int, earlier: Sequence[Int64s], share: float) -> Int64s:
    """A seeded share of the samples of all earlier phases, rising store indices, none twice; at least one."""
    if not earlier or not share:
        return np.empty(0, dtype=np.int64)
    pool = np.sort(np.concatenate(earlier))
    keys = sample_keys(seed ^ _REPLAY, number, 0, int(pool[-1]) + 1)[pool]
    return np.sort(pool[np.argsort(keys, kind="stable")[: max(1, round(share * len(pool)))]])


def _shares(counts: Sequence[int], limit: int | None) -> list[int | None]:
    """Steps that each phase may take: all shortened in the same proportion, at least one each; None is no limit.

    Args:
        counts: steps of each phase without a limit.
        limit: steps of the run.

    Raises:
        RecipeError: fewer steps than phases.
    """
    total = sum(counts)
    if limit is None or (limit >= total and len(counts) > 1):
        return [None] * len(counts)
    if limit < len(counts):
        raise RecipeError(f"max_steps is {limit}, but there are {len(counts)} phases; give at least one step to each")
    if len(counts) == 1:
        return [limit]
    shares = [limit * count // total for count in counts]
    by_rest = sorted(range(len(counts)), key=lambda k: (-(limit * counts[k] % total), k))
    for k in by_rest[: limit - sum(shares)]:
        shares[k] += 1
    while 0 in shares:  # the longest gives a step away
        shares[shares.index(max(shares))] -= 1
        shares[shares.index(0)] = 1
    return list(shares)


def epochs_seen(phase: Mapping[str, Any]) -> int:
    """Epochs of a phase of :meth:`RunOrder.summary`, begun ones counted: ``max_steps`` may end it before its last."""
    return min(int(phase["num_train_epochs"]), math.ceil(phase["samples"] / phase["epoch_samples"]))
