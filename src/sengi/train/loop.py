"""The step loop: restore, step, log, save, stop. All state of a run that changes while it trains lives here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sengi.data.packing import pack_step
from sengi.errors import NonFiniteError, StoppedByRequest, StorageError
from sengi.train import checkpoint
from sengi.train.alarm_watch import AlarmWatch, non_finite_error
from sengi.train.background_save import Saver
from sengi.train.evaluation import Evaluations
from sengi.train.export import check_base, model_card
from sengi.train.handover import Handover
from sengi.train.optimizer import build_optimizer, learning_rate, set_learning_rate
from sengi.train.out_of_memory import MemoryGuard, StepOutOfMemory, does_not_fit, smaller_budget
from sengi.train.record import Recorder
from sengi.train.run_context import RunContext
from sengi.train.schedule import save_is_due
from sengi.train.setup import Setup
from sengi.train.sharding import reduces_each_micro_batch, reshard
from sengi.train.step import run_step


class Loop:
    """Trains a model from the step it is at to the last one.

    Args:
        run: recipe, store, order and plan, processes, observer and folder.
        evaluations: what is scored on the way.
        handover: the ends of phases.
        model: the (sharded) supervised model; ``optimizer`` its AdamW.
        files: what a checkpoint holds beside weights, state and card, name -> content.
        autocast: dtype of the computation, or None for float32.

    Attributes:
        step: steps done.
        saved_step: the step of the newest checkpoint, perhaps still in the making; -1 without one.
        saver: writes the checkpoints.
    """

    def __init__(
        self,
        run: RunContext,
        evaluations: Evaluations,
        handover: Handover,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        files: dict[str, bytes],
        autocast: torch.dtype | None,
    ) -> None:
        self._run = run
        self.world, self.observer, self.stop, self.folder = run.world, run.observer, run.stop, run.folder
        self.evaluations, self.handover = evaluations, handover
        self.model, self.optimizer, self.files, self.autocast = model, optimizer, files, autocast
        self.recipe = self.setup.resolved.recipe
        self.step = 0
        self.saved_step = -1
        self.loss = float("nan")
        self.recorder = Recorder(self.setup, self.world)
        self.guard = MemoryGuard(model, self.world)
        self.reduce_each = reduces_each_micro_batch(self.recipe, self.world, self.setup.plan.trained_parameters)
        planned, on_alarm = self.setup.steps.num_steps, self.recipe.on_alarm
        self.alarms = AlarmWatch(planned, on_alarm, self.world, self.folder, self.observer)
        background = self.recipe.save_in_background
        self.saver = Saver(self.folder.path, self.world, self.observer, background, self._published)

    @property
    def setup(self) -> Setup:
        """Recipe, store, order, and the plan as it is now."""
        return self._run.setup

    def restore(self) -> None:
        """Go to the newest good checkpoint, if there is one, and open the log behind it.

        Raises:
            CheckpointError: there are checkpoints, but none is good.
        """
        start = self.handover.start(checkpoint.newest_valid(self.folder.path, self.world, self.observer.message))
        if start is not None:
            self.world.on_first(lambda: check_base(start.folder, self.files))
            fresh = start.begins_phase and self.handover.fresh
            checkpoint.load(start.folder, self.model, None if fresh else self.optimizer, self.world)
            self.step = self.saved_step = start.step
            self.loss = float(start.facts["loss"])
            begins = f", which begins phase {self.setup.steps.phase_at(self.step + 1).name}"
            self.observer.message(
                f"continuing after step {self.step} from {start.folder.name}{begins if start.begins_phase else ''}"
            )
            if start.facts["world_size"] != self.world.size:
                self.observer.message(
                    f"it was saved by {start.facts['world_size']} processes and goes on with {self.world.size}: the "
                    "same samples, losses equal up to rounding"
                )
        for note in self.world.on_first(lambda: self.folder.open_log(self.step)) or []:
            self.observer.message(note)
        self.alarms.restore()

    def run(self) -> Path:
        """Train to the end; at an evaluation point held-out loss comes first, then the checkpoint, then its tasks.

        A run killed between the last two finds the checkpoint unscored when it continues. At the end of a phase the
        best checkpoint of it is chosen then, and the next phase begins with it.

        Returns:
            The last checkpoint.

        Raises:
            StoppedByRequest: asked to stop, or by an alarm; the state is saved.
            NonFiniteError: loss or gradient norm is not finite; the state before that step is saved.
        """
        steps = self.setup.steps
        self.observer.start(self.step, steps.num_steps, steps.samples_seen(self.step), steps.total_samples)
        self.stop.patient = True
        while True:
            if self.handover.is_due(self.step):
                self._begin_next_phase()
            if self.step == steps.num_steps:
                break
            self._train_step(self.step + 1)
            self._evaluate_and_save()
            if self.step < steps.num_steps:
                self.alarms.stop_if_due(self._save_if_new)
        self._save_if_new()
        self.stop.patient = False
        return self.folder.path / f"{checkpoint.PREFIX}{self.step}"

    def _evaluate_and_save(self) -> None:
        """What is due after a step; the tasks of the last one wait until the model is gone."""
        steps, evaluations = self.setup.steps, self.evaluations
        due = self.step < steps.num_steps and evaluations.is_due(self.step)
        if due:
            evaluations.heldout(self.step, self.model, self.autocast)
        if (needed := evaluations.needs_checkpoint(self.step)) or save_is_due(self.recipe, steps, self.step):
            scored = needed and evaluations.suite is not None
            self._save(wait=scored or steps.ends_phase(self.step))
        if due:
            evaluations.tasks(self.step)

    def _begin_next_phase(self) -> None:
        """Choose a checkpoint of the phase that has ended, and go on from it."""
        chosen, fresh = self.handover.end_phase(self.step, self.model, self.autocast), self.handover.fresh
        reshard(self.model)  # held-out loss may have left parameters whole, which no optimizer knows
        if chosen is not None:
            checkpoint.load(chosen, self.model, None if fresh else self.optimizer, self.world)
        if fresh:
            self.optimizer = build_optimizer(self.model, self.recipe)

    def _train_step(self, step: int) -> None:
        started = time.perf_counter()
        setup = self.setup
        samples = setup.steps.step_samples(step)
        lengths = setup.store.lengths[samples]
        planned = time.perf_counter() - started
        phase = setup.steps.phase_at(step)
        rate = learning_rate(phase.recipe, step - phase.first, phase.plan.num_steps)
        set_learning_rate(self.optimizer, rate)
        before, begun = setup.steps.samples_seen(step - 1), 0

        def before_micro_batch(number: int, members: Sequence[int]) -> None:
            nonlocal begun
            self._stop_if_asked()  # a step may take minutes; ranks ask each other on the CPU, and no GPU waits for it
            self.saver.poll()
            self.observer.micro_batch(before + min(begun, len(samples)))
            begun += len(members) * self.world.size
            if self.world.first:
                with contextlib.suppress(StorageError):  # a missed heartbeat must not raise on one rank alone
                    self.folder.status(now=False, step=step - 1, samples_seen=before)

        result, given = None, self.setup.plan.max_tokens_per_device
        while result is None:
            budget, begun = self.setup.plan.max_tokens_per_device, 0
            packs = pack_step(lengths, budget, self.world.size, setup.cost.attention_cost, halves=True)
            try:
                result = run_step(
                    self.model,
                    self.optimizer,
                    setup.store,
                    samples,
                    packs,
                    self.recipe,
                    self.world,
                    self.autocast,
                    self.guard,
                    before_micro_batch=before_micro_batch,
                    reduce_each=self.reduce_each,
                )
            except NonFiniteError as error:
                self._save_if_new()
                places = [setup.store.place(int(i)) for i in samples[:3]]
                raise non_finite_error(step, error, self.step, places, self.folder.path) from None
            except StepOutOfMemory as error:
                self._go_on_with_less(step, error, smaller_budget(packs, lengths, int(setup.store.lengths.max())))
        self.step, self.loss = step, result.loss
        record = self.recorder.line(step, result, rate, time.perf_counter() - started, planned)
        if self.setup.plan.max_tokens_per_device < given:
            record["max_tokens_reduced_to"] = self.setup.plan.max_tokens_per_device

        def log() -> None:
            self.folder.log_step(record)
            self.evaluations.poll()

        self.world.on_first(log)
        self.observer.step(record)
        if self.world.first:
            self.alarms.step(record)

    def _go_on_with_less(self, step: int, error: StepOutOfMemory, budget: int | None) -> None:
        """Make micro-batches smaller for the rest of the run, also when it is continued.

        Raises:
            SengiError: they cannot be smaller.
        """
        plan = self.setup.plan
        if budget is None:
            raise does_not_fit(step, error, plan, self.setup.store)
        self.observer.message(
            f"step {step}: out of memory with micro-batches of up to {plan.max_tokens_per_device:,} tokens ({error}); "
            f"doing the step again with at most {budget:,}, the same samples and gradient, and so the rest of the run"
        )
        given = plan.max_tokens_reduced_from or plan.max_tokens_per_device
        plan = replace(plan, max_tokens_per_device=budget, max_tokens_reduced_from=given)
        self._run.setup = replace(self.setup, plan=plan)
        self.world.on_first(lambda: self.folder.write_plan(plan.to_dict()))

    def _stop_if_asked(self) -> None:
        if self.world.any(bool(self.stop.reason)):
            self._save_if_new()
            raise StoppedByRequest(
                f"stopped by {self.stop.reason or 'a signal to another rank'} after step {self.step}, state saved; "
                "run the same command to continue"
            )

    def _save_if_new(self) -> None:
        """See that the state of now is safe on disk."""
        if self.step > 0 and self.saved_step != self.step:
            self._save(wait=True)
        self.saver.finish()

    def _save(self, wait: bool) -> None:
        """Begin a checkpoint; with ``wait`` it is safe on disk on return."""
        self.world.on_first(self.folder.sync_log)
        seen = self.setup.steps.samples_seen(self.step)
        sources = {name: value["samples"] for name, value in self.setup.plan.data["sources"].items()}
        self.saver.save(
            self.step,
            self.model,
            self.optimizer,
            export_dtype=self.autocast or torch.float32,
            files={**self.files, "README.md": model_card(self.recipe, self.step, seen, self.loss, sources)},
            facts={"samples_seen": seen, "loss": self.loss, "data_fingerprint": self.setup.store.fingerprint},
            wait=wait,
        )
        self.saved_step = self.step

    def _published(self, path: Path) -> None:
        """A checkpoint is safe on disk: remove those beyond save_total_limit."""
        self.observer.saved(path)

        def remove_old() -> None:
            spared = {*self.evaluations.in_use(), *self.handover.spared()}
            checkpoint.prune(self.folder.path, self.recipe.save_total_limit, spared, self.handover.place)
            self.folder.status(step=self.step, samples_seen=self.setup.steps.samples_seen(self.step))

        self.world.on_first(remove_old)
