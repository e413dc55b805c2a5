"""One training run, from recipe to finished folder: the story that the other files of this package tell parts of."""

from __future__ import annotations

import contextlib
import gc
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sengi import storage
from sengi.data.packing import pack_step
from sengi.environment import describe_environment
from sengi.errors import NonFiniteError, SengiError, StoppedByRequest
from sengi.evaluate.heldout import heldout_losses, heldout_scores
from sengi.evaluate.tasks import evaluate_questions
from sengi.model.load import load_model, load_tokenizer
from sengi.model.supervised import prepare
from sengi.recipe_sources import ResolvedRecipe
from sengi.train import checkpoint
from sengi.train.distributed import World, end_world, start_world
from sengi.train.export import export_files, model_card
from sengi.train.ledger import samples_digest
from sengi.train.observer import Observer
from sengi.train.optimizer import build_optimizer, learning_rate, set_learning_rate
from sengi.train.run_folder import RunFolder, check_same_data, check_same_recipe, read_plan
from sengi.train.setup import DTYPES, Setup, set_up
from sengi.train.sharding import shard
from sengi.train.step import run_step
from sengi.train.stopping import StopRequest


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves.

    Attributes:
        folder: the run folder.
        checkpoint: the last checkpoint in it.
        step: steps done.
    """

    folder: Path
    checkpoint: Path
    step: int


def train(resolved: ResolvedRecipe, observer: Observer | None = None) -> RunResult:
    """Start the run of a recipe, or continue it where it stopped.

    Args:
        resolved: the recipe (:func:`sengi.recipe_sources.resolve_recipe`).
        observer: told of everything that happens, on rank 0.

    Raises:
        InputError: the request cannot be carried out; nothing was changed.
        StoppedByRequest: a signal asked to stop; the state is saved, the same call continues.
        SengiError: the run failed; status.json says why, and the same call continues from the last checkpoint.
    """
    world = start_world()
    observer = observer if observer is not None and world.first else Observer()
    folder = Path(resolved.recipe.output_dir)
    with contextlib.ExitStack() as stack:
        stack.callback(end_world)
        stop = stack.enter_context(StopRequest())

        def claim() -> None:
            storage.create_folder(folder)
            stack.enter_context(storage.lock(folder))
            for note in check_same_recipe(folder, resolved):
                observer.message(note)
            if left := storage.sweep(folder):
                observer.message(f"removed {len(left)} left-overs of an interrupted save")

        world.on_first(claim)
        earlier = world.on_first(lambda: read_plan(folder))
        setup = set_up(resolved, world, observer, earlier)
        world.on_first(lambda: check_same_data(folder, setup.store.fingerprint))
        observer.plan(setup.plan)
        run = _Run(setup, world, observer, stop, folder)
        try:
            return run.go()
        except BaseException as error:
            run.failed(error)
            raise


class _Run:
    """The state of one run on one rank."""

    def __init__(self, setup: Setup, world: World, observer: Observer, stop: StopRequest, path: Path) -> None:
        self.setup, self.world, self.observer, self.stop = setup, world, observer, stop
        self.recipe = setup.resolved.recipe
        self.folder = RunFolder(path)
        self.path = path
        self.step = 0
        self.saved_step = -1
        self.doing = "starting"

    def go(self) -> RunResult:
        """The whole run."""
        self._write_request()
        self._score_questions(0, self.setup.model_folder)
        self._load()
        self._heldout()
        steps = self.setup.steps
        done = self._samples_seen(self.step)
        self.observer.start(self.step, steps.num_steps, done, steps.total_samples)
        while self.step < steps.num_steps:
            self._one_step(self.step + 1)
            every = self.recipe.eval_steps
            if every and self.step % every == 0 and self.step < steps.num_steps:
                self._heldout()
            if self._save_is_due():
                self._save()
        self._heldout()
        if self.saved_step != self.step:
            self._save()
        last = self.path / f"{checkpoint.PREFIX}{self.step}"
        del self.model, self.optimizer  # scoring loads the checkpoint as users will; make room for it
        gc.collect()
        self._score_questions(self.step, last)
        self._on_first(lambda: self.folder.status(state="finished", reason="", step=self.step))
        return RunResult(self.path, last, self.step)

    def failed(self, error: BaseException) -> None:
        """Leave the cause in status.json; a failing disk must not hide it."""
        if not self.world.first:
            return
        asked = isinstance(error, StoppedByRequest | KeyboardInterrupt)
        with contextlib.suppress(SengiError):
            reason = str(error) or type(error).__name__
            self.folder.status(state="stopped" if asked else "failed", reason=reason, step=self.step)

    def _on_first(self, work: Any) -> Any:
        return self.world.on_first(work)

    def _write_request(self) -> None:
        def write() -> None:
            plan = self.setup.plan
            environment = {**describe_environment(), "world_size": self.world.size, "device": plan.device}
            self.folder.write_request(self.setup.resolved, plan.to_dict(), environment)
            drops = self.setup.store.path / "dropped.jsonl"
            storage.write_file(self.path / "dropped.jsonl", drops.read_bytes())
            self.folder.status(step=0, max_steps=plan.steps, world_size=self.world.size, samples_seen=0)

        self._on_first(write)

    def _load(self) -> None:
        """Model and optimizer, from the newest good checkpoint if there is one."""
        self.doing = "loading the model"
        dtype = DTYPES[self.setup.plan.dtype]
        self.autocast = dtype if dtype != torch.float32 else None
        lm = load_model(self.setup.model_folder)
        tokenizer = load_tokenizer(self.setup.model_folder)
        self.files = export_files(lm, tokenizer, self.recipe, dtype)
        self.model = shard(prepare(lm).to(self.world.device), self.world)
        self.optimizer = build_optimizer(self.model, self.recipe)
        found = checkpoint.newest_valid(self.path, self.world, self.observer.message)
        self.loss = float("nan")
        if found is not None:
            folder, facts = found
            checkpoint.load(folder, self.model, self.optimizer, self.world)
            self.step = self.saved_step = int(facts["step"])
            self.loss = float(facts["loss"])
            self.observer.message(f"continuing after step {self.step} from {folder.name}")
            if facts["world_size"] != self.world.size:
                self.observer.message(
                    f"it was saved by {facts['world_size']} processes and goes on with {self.world.size}: the same "
                    "samples, losses equal up to rounding"
                )
        for note in self._on_first(lambda: self.folder.open_log(self.step)) or []:
            self.observer.message(note)

    def _one_step(self, step: int) -> None:
        started = time.perf_counter()
        self.doing = f"step {step}"
        setup, recipe = self.setup, self.recipe
        samples = setup.steps.step_samples(step)
        lengths = setup.store.lengths[samples]
        packs = pack_step(lengths, setup.plan.max_tokens_per_device, self.world.size, setup.cost.attention_cost)
        planned = time.perf_counter() - started
        rate = learning_rate(recipe, step, setup.steps.num_steps)
        set_learning_rate(self.optimizer, rate)
        before = self._samples_seen(step - 1)
        done = 0

        def before_micro_batch(number: int, members: Sequence[int]) -> None:
            nonlocal done
            if self.world.device.type == "cpu" or number == 0:  # on a GPU asking would stall the queue
                self._stop_if_asked()
            self.doing = f"step {step}, micro-batch {number + 1}, {len(members)} samples"
            self.observer.micro_batch(before + min(len(samples), done))
            done += len(members) * self.world.size
            if self.world.first:
                self.folder.status(now=False, step=step - 1, samples_seen=before)

        try:
            result = run_step(
                self.model,
                self.optimizer,
                setup.store,
                samples,
                packs,
                recipe,
                self.world,
                self.autocast,
                before_micro_batch=before_micro_batch,
            )
        except NonFiniteError as error:
            self._save_if_new()
            places = ", ".join(setup.store.place(int(i)) for i in samples[:3])
            raise NonFiniteError(
                f"step {step}: {error}; no update was made and step {self.step} is saved; look at its samples "
                f"({places}, ...; all by 'sengi data ledger {self.path} --step {step}') or lower learning_rate"
            ) from None
        self.step, self.loss = step, result.loss
        seconds = time.perf_counter() - started
        tokens, targets = int(lengths.sum()), int(setup.store.supervised[samples].sum())
        flops = setup.cost.flops(tokens, targets, float((lengths.astype(float) ** 2).sum()))
        record = {
            "step": step,
            "epoch": round(setup.steps.epoch_at(step), 6),
            "phase": "stacked",
            "samples_seen": self._samples_seen(step),
            "num_tokens": tokens,
            "num_supervised_tokens": targets,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "learning_rate": rate,
            "tokens_per_second": tokens / seconds,
            "mfu": flops / seconds / setup.plan.peak_flops if setup.plan.peak_flops else None,
            "step_seconds": seconds,
            "data_wait_seconds": planned + result.data_seconds,
            "peak_memory_bytes": _peak_memory(self.world.device),
            "samples_sha256": samples_digest(samples),
        }
        self._on_first(lambda: self.folder.log_step(record))
        self.observer.step(record)

    def _stop_if_asked(self) -> None:
        if self.world.any(bool(self.stop.reason)):
            self._save_if_new()
            raise StoppedByRequest(
                f"stopped by {self.stop.reason or 'another rank'} after step {self.step}, state saved; "
                "run the same command to continue"
            )

    def _save_is_due(self) -> bool:
        recipe, steps = self.recipe, self.setup.steps
        if self.step == steps.num_steps:
            return True
        if recipe.save_steps is not None:
            return self.step % recipe.save_steps == 0
        if recipe.save_samples is None:
            return False
        return (
            self._samples_seen(self.step) // recipe.save_samples
            > self._samples_seen(self.step - 1) // recipe.save_samples
        )

    def _save_if_new(self) -> None:
        if self.step > 0 and self.saved_step != self.step:
            self._save()

    def _save(self) -> None:
        doing, self.doing = self.doing, f"saving step {self.step}"
        self._on_first(self.folder.sync_log)
        seen = self._samples_seen(self.step)
        sources = {name: value["samples"] for name, value in self.setup.plan.data["sources"].items()}
        folder = checkpoint.save(
            self.path,
            self.step,
            self.model,
            self.optimizer,
            self.world,
            export_dtype=self.autocast or torch.float32,
            files={**self.files, "README.md": model_card(self.recipe, self.step, seen, self.loss, sources)},
            facts={"samples_seen": seen, "loss": self.loss, "data_fingerprint": self.setup.store.fingerprint},
        )
        self.saved_step = self.step
        self.observer.saved(folder)

        def remove_old() -> None:
            keep = self.recipe.save_total_limit
            for old in storage.published(self.path, checkpoint.PREFIX)[:-keep] if keep else []:
                storage.remove(old)
            self.folder.status(step=self.step, samples_seen=seen)

        self._on_first(remove_old)
        self.doing = doing

    def _heldout(self) -> None:
        """Held-out loss of the model as it is now; changes nothing in it."""
        store = self.setup.heldout
        if store is None or self._on_first(lambda: self.folder.has_evaluation(self.step, "heldout")):
            return
        started = time.perf_counter()
        context = torch.autocast(self.world.device.type, self.autocast) if self.autocast else contextlib.nullcontext()
        with context:
            sums = heldout_losses(
                self.model,
                store,
                self.setup.plan.max_tokens_per_device,
                self.world.rank,
                self.world.size,
                self.world.device,
                self.world.sum,
            )
        scores = heldout_scores(store, sums)
        result = {"model": str(self.path), "seconds": time.perf_counter() - started, "scores": scores}
        self._on_first(lambda: self.folder.write_evaluation(self.step, "heldout", result, []))
        self.observer.evaluated(self.step, scores)

    def _score_questions(self, step: int, model_folder: Path) -> None:
        """Question files under the model in ``model_folder``, by rank 0; once for each step."""
        files = [Path(name) for name in self.recipe.eval_questions]
        if not files:
            return
        self.doing = "scoring questions"

        def score() -> list[dict[str, Any]] | None:
            if self.folder.has_evaluation(step, "questions"):
                return None
            found = evaluate_questions(model_folder, files)
            result = {"model": str(model_folder), "seconds": found.seconds, "scores": found.scores}
            self.folder.write_evaluation(step, "questions", result, found.items)
            return found.scores

        scores = self._on_first(score)
        if scores:
            self.observer.evaluated(step, scores)

    def _samples_seen(self, step: int) -> int:
        return min(step * self.recipe.effective_batch_size, self.setup.steps.total_samples)


def _peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: the allocator's on a GPU, the process's resident set on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
