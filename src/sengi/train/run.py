"""One training run, from recipe to finished folder: the story that the other files of this package tell parts of."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sengi import storage
from sengi.environment import describe_environment
from sengi.errors import ModelError, SengiError, StoppedByRequest
from sengi.evaluate.heldout import heldout_losses, heldout_scores
from sengi.evaluate.tasks import evaluate_questions, load_tasks
from sengi.model.load import load_model, load_tokenizer
from sengi.model.supervised import prepare
from sengi.recipe_sources import ResolvedRecipe
from sengi.train.distributed import World, end_world, start_world
from sengi.train.export import export_files
from sengi.train.loop import Loop
from sengi.train.observer import Observer
from sengi.train.optimizer import build_optimizer
from sengi.train.run_folder import RunFolder, check_same_data, check_same_recipe, read_plan
from sengi.train.setup import DTYPES, Setup, set_up
from sengi.train.sharding import shard
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
    path = Path(resolved.recipe.output_dir)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        stack.callback(end_world)
        world = start_world()
        observer = observer if observer is not None and world.first else Observer()
        told = observer.message

        for note in world.on_first(lambda: check_same_recipe(path, resolved)):
            told(note)
        setup = set_up(resolved, world, observer, world.on_first(lambda: read_plan(path)))
        world.on_first(lambda: load_tasks([Path(name) for name in resolved.recipe.eval_questions]) and None)

        def claim() -> None:  # only now: bad input leaves no folder behind
            storage.create_folder(path)
            stack.enter_context(storage.lock(path))
            check_same_recipe(path, resolved)
            check_same_data(path, setup.store.fingerprint)
            if left := storage.sweep(path):
                told(f"removed {len(left)} left-overs of an interrupted save")

        world.on_first(claim)
        observer.plan(setup.plan)
        folder = RunFolder(path)
        try:
            return _run(setup, world, observer, stop, folder)
        except BaseException as error:
            if world.first or not getattr(error, "elsewhere", False):  # the rank it happened on knows the cause
                _note_failure(folder, error)
            raise


def _run(setup: Setup, world: World, observer: Observer, stop: StopRequest, folder: RunFolder) -> RunResult:
    """Score, load, train, score."""
    world.on_first(lambda: _write_request(setup, world, folder))
    _score_questions(setup, world, observer, folder, 0, setup.model_folder)
    step, last = _train_model(setup, world, observer, stop, folder)
    gc.collect()  # scoring loads the checkpoint as users will: make room for it
    _score_questions(setup, world, observer, folder, step, last)
    world.on_first(lambda: folder.status(state="finished", reason="", step=step))
    return RunResult(folder.path, last, step)


def _train_model(
    setup: Setup, world: World, observer: Observer, stop: StopRequest, folder: RunFolder
) -> tuple[int, Path]:
    """Load, restore, train; the last step and its checkpoint. The model is gone when this returns."""
    loop = _load(setup, world, observer, stop, folder)
    loop.restore()

    def evaluate(step: int) -> None:
        _score_heldout(setup, world, observer, folder, step, loop.model, loop.autocast)

    if loop.step == 0:  # a run that is continued has its start scored already
        evaluate(0)
    last = loop.run(evaluate)
    evaluate(loop.step)
    return loop.step, last


def _write_request(setup: Setup, world: World, folder: RunFolder) -> None:
    plan = setup.plan
    environment = {**describe_environment(), "world_size": world.size, "device": plan.device}
    folder.write_request(setup.resolved, plan.to_dict(), environment)
    storage.write_file(folder.path / "dropped.jsonl", (setup.store.path / "dropped.jsonl").read_bytes())
    folder.status(max_steps=plan.steps, world_size=world.size)


def _load(setup: Setup, world: World, observer: Observer, stop: StopRequest, folder: RunFolder) -> Loop:
    """The base model, made padding-free, sharded and given an optimizer."""
    recipe, dtype = setup.resolved.recipe, DTYPES[setup.plan.dtype]
    lm = load_model(setup.model_folder)
    files = export_files(lm, load_tokenizer(setup.model_folder), dtype)
    autocast = dtype if dtype != torch.float32 else None
    supervised = prepare(lm, world.device, autocast)
    if not supervised.padding_free and world.size > 1:
        raise ModelError(
            f"{type(lm).__name__} carries state along the row, so it runs one document a call and on one process only; "
            "run it without torchrun"
        )
    if not supervised.padding_free:
        observer.message(f"{type(lm).__name__} carries state along the row: one document a forward call, not packed")
    model = shard(supervised, world)
    return Loop(setup, world, observer, stop, folder, model, build_optimizer(model, recipe), files, autocast)


def _score_heldout(
    setup: Setup,
    world: World,
    observer: Observer,
    folder: RunFolder,
    step: int,
    model: nn.Module,
    autocast: torch.dtype | None,
) -> None:
    """Held-out loss of the model as it is now, once for each step; changes nothing in it."""
    store = setup.heldout
    if store is None or world.on_first(lambda: folder.has_evaluation(step, "heldout", store.fingerprint)):
        return
    started = time.perf_counter()
    budget, device = setup.plan.max_tokens_per_device, world.device
    with torch.autocast(device.type, autocast) if autocast else contextlib.nullcontext():
        sums = heldout_losses(model, store, budget, world.rank, world.size, device, world.sum)
    scores = heldout_scores(store, sums)
    seconds = time.perf_counter() - started
    result = {"model": str(folder.path), "data": store.fingerprint, "seconds": seconds, "scores": scores}
    world.on_first(lambda: folder.write_evaluation(step, "heldout", result, []))
    observer.evaluated(step, scores)


def _score_questions(
    setup: Setup, world: World, observer: Observer, folder: RunFolder, step: int, model_folder: Path
) -> None:
    """Question files under the model in ``model_folder``, by rank 0, once for each step."""
    files = [Path(name) for name in setup.resolved.recipe.eval_questions]
    if not files:
        return

    def score() -> list[dict[str, Any]]:
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        if folder.has_evaluation(step, "questions", digest):
            return []
        found = evaluate_questions(model_folder, files)
        result = {"model": str(model_folder), "data": digest, "seconds": found.seconds, "scores": found.scores}
        folder.write_evaluation(step, "questions", result, found.items)
        return found.scores

    if scores := world.on_first(score):
        observer.evaluated(step, scores)


def _note_failure(folder: RunFolder, error: BaseException) -> None:
    """Leave the cause in status.json; a failing disk must not hide it."""
    asked = isinstance(error, StoppedByRequest | KeyboardInterrupt)
    with contextlib.suppress(SengiError):
        folder.status(state="stopped" if asked else "failed", reason=str(error) or type(error).__name__)
