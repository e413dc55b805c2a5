"""The step loop: restore, step, log, save, stop. All state of a run that changes while it trains lives here."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sengi.data.packing import pack_step
from sengi.errors import NonFiniteError, StoppedByRequest, StorageError
from sengi.train import checkpoint
from sengi.train.background_save import Saver
from sengi.train.distributed import World
from sengi.train.evaluation import Evaluations
from sengi.train.export import check_base, model_card
from sengi.train.ledger import samples_digest
from sengi.train.observer import Observer
from sengi.train.optimizer import learning_rate, set_learning_rate
from sengi.train.out_of_memory import MemoryGuard, StepOutOfMemory, does_not_fit, smaller_budget
from sengi.train.run_folder import RunFolder
from sengi.train.schedule import samples_seen, save_is_due
from sengi.train.setup import Setup
from sengi.train.sharding import reduces_each_micro_batch
from sengi.train.step import StepResult, run_step
from sengi.train.stopping import StopRequest


class Loop:
    """Trains a model from the step it is at to the last one.

    Args:
        setup: recipe, store, order and plan.
        world: the processes of the run.
        folder: the run folder; only rank 0 writes.
        evaluations: what is scored on the way.
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
        setup: Setup,
        world: World,
        observer: Observer,
        stop: StopRequest,
        folder: RunFolder,
        evaluations: Evaluations,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        files: dict[str, bytes],
        autocast: torch.dtype | None,
    ) -> None:
        self.setup, self.world, self.observer, self.stop, self.folder = setup, world, observer, stop, folder
        self.evaluations = evaluations
        self.model, self.optimizer, self.files, self.autocast = model, optimizer, files, autocast
        self.recipe = setup.resolved.recipe
        self.step = 0
        self.saved_step = -1
        self.loss = float("nan")
        self.peak = setup.plan.peak_flops
        self.guard = MemoryGuard(model, world)
        self.reduce_each = reduces_each_micro_batch(self.recipe, world, setup.plan.trained_parameters)
        self.saver = Saver(folder.path, world, observer, self.recipe.save_in_background, self._published)

    def restore(self) -> None:
        """Go to the newest good checkpoint, if there is one, and open the log behind it.

        Raises:
            CheckpointError: there are checkpoints, but none is good.
        """
        found = checkpoint.newest_valid(self.folder.path, self.world, self.observer.message)
        if found is not None:
            path, facts = found
            self.world.on_first(lambda: check_base(path, self.files))
            checkpoint.load(path, self.model, self.optimizer, self.world)
            self.step = self.saved_step = int(facts["step"])
            self.loss = float(facts["loss"])
            self.observer.message(f"continuing after step {self.step} from {path.name}")
            if facts["world_size"] != self.world.size:
                self.observer.message(
                    f"it was saved by {facts['world_size']} processes and goes on with {self.world.size}: the same "
                    "samples, losses equal up to rounding"
                )
        for note in self.world.on_first(lambda: self.folder.open_log(self.step)) or []:
            self.observer.message(note)

    def run(self) -> Path:
        """Train to the end; at an evaluation point held-out loss comes first, then the checkpoint, then its tasks.

        A run killed between the last two finds the checkpoint unscored when it continues.

        Returns:
            The last checkpoint.

        Raises:
            StoppedByRequest: asked to stop; the state is saved.
            NonFiniteError: loss or gradient norm is not finite; the state before that step is saved.
        """
        steps = self.setup.steps
        self.observer.start(self.step, steps.num_steps, samples_seen(self.setup.steps, self.step), steps.total_samples)
        self.stop.patient = True
        while self.step < steps.num_steps:
            self._train_step(self.step + 1)
            due = self.step < steps.num_steps and self.evaluations.is_due(self.step)
            if due:
                self.evaluations.heldout(self.step, self.model, self.autocast)
            scored = self.evaluations.needs_checkpoint(self.step)
            if scored or save_is_due(self.recipe, steps, self.step):
                self._save(wait=scored or self.step == steps.num_steps)
            if due:
                self.evaluations.tasks(self.step)
        self._save_if_new()
        self.stop.patient = False
        return self.folder.path / f"{checkpoint.PREFIX}{self.step}"

    def _train_step(self, step: int) -> None:
        started = time.perf_counter()
        setup = self.setup
        samples = setup.steps.step_samples(step)
        lengths = setup.store.lengths[samples]
        planned = time.perf_counter() - started
        rate = learning_rate(self.recipe, step, setup.steps.num_steps)
        set_learning_rate(self.optimizer, rate)
        before, begun = samples_seen(self.setup.steps, step - 1), 0

        def before_micro_batch(number: int, members: Sequence[int]) -> None:
            nonlocal begun
            if self.world.device.type == "cpu" or number == 0:  # on a GPU, asking would stall the queue
                self._stop_if_asked()
                self.saver.poll()
            self.observer.micro_batch(before + min(begun, len(samples)))
            begun += len(members) * self.world.size
            if self.world.first:
                with contextlib.suppress(StorageError):  # a missed heartbeat must not raise on one rank alone
                    self.folder.status(now=False, step=step - 1, samples_seen=before)

        result, given = None, self.setup.plan.max_tokens_per_device
        while result is None:
            budget, begun = self.setup.plan.max_tokens_per_device, 0
            packs = pack_step(lengths, budget, self.world.size, setup.cost.attention_cost)
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
                saved = f"step {self.step} is saved" if self.step else "nothing was trained yet"
                places = ", ".join(setup.store.place(int(i)) for i in samples[:3])
                raise NonFiniteError(
                    f"step {step}: {error}; no update was made and {saved}; look at its samples ({places}, ...; all by "
                    f"'sengi data ledger {self.folder.path} --step {step}'), or lower learning_rate in another "
                    "output_dir"
                ) from None
            except StepOutOfMemory as error:
                self._go_on_with_less(step, error, smaller_budget(packs, lengths, int(setup.store.lengths.max())))
        self.step, self.loss = step, result.loss
        record = self._record(step, result, rate, time.perf_counter() - started, planned)
        if self.setup.plan.max_tokens_per_device < given:
            record["max_tokens_reduced_to"] = self.setup.plan.max_tokens_per_device

        def log() -> None:
            self.folder.log_step(record)
            self.evaluations.poll()

        self.world.on_first(log)
        self.observer.step(record)

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
        self.setup = replace(self.setup, plan=plan)
        self.world.on_first(lambda: self.folder.write_plan(plan.to_dict()))

    def _record(self, step: int, result: StepResult, rate: float, seconds: float, planned: float) -> dict[str, object]:
        """The line of dynamics.jsonl."""
        setup = self.setup
        samples = setup.steps.step_samples(step)
        lengths = setup.store.lengths[samples]
        tokens, targets = int(lengths.sum()), int(setup.store.supervised[samples].sum())
        speed = setup.cost.flops(tokens, targets, float((lengths.astype(float) ** 2).sum())) / seconds
        ranks = self.world.size if self.world.device.type == "cuda" else 1  # ranks of one CPU share its cores
        if self.peak is not None:  # a CPU's peak is measured; if the machine was busy then, a step can be faster
            self.peak = max(self.peak, speed / ranks)
        return {
            "step": step,
            "epoch": round(setup.steps.epoch_at(step), 6),
            "phase": "stacked",
            "samples_seen": samples_seen(self.setup.steps, step),
            "num_tokens": tokens,
            "num_supervised_tokens": targets,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "half_grad_norm": result.half_grad_norm,
            "half_share": result.half_share,
            "learning_rate": rate,
            "tokens_per_second": tokens / seconds,
            "mfu": speed / (self.peak * ranks) if self.peak else None,
            "step_seconds": seconds,
            "data_wait_seconds": planned + result.data_seconds,
            "peak_memory_bytes": _peak_memory(self.world.device),
            "samples_sha256": samples_digest(samples),
        }

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
        seen = samples_seen(self.setup.steps, self.step)
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
            checkpoint.prune(self.folder.path, self.recipe.save_total_limit, self.evaluations.in_use())
            self.folder.status(step=self.step, samples_seen=samples_seen(self.setup.steps, self.step))

        self.world.on_first(remove_old)


def _peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: the allocator's on a GPU, the process's resident set on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
