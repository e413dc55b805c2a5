"""One training run, from recipe to finished folder: the story that the other files of this package tell parts of."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass
from pathlib import Path

import torch

from sengi import storage
from sengi.environment import describe_environment
from sengi.errors import ModelError, SengiError, StoppedByRequest
from sengi.evaluate import run_evaluations
from sengi.evaluate.contamination import write_contamination
from sengi.evaluate.tasks import load_tasks
from sengi.model.compiled import parts_left_plain
from sengi.model.lora import stays_as_stored
from sengi.recipe_sources import ResolvedRecipe
from sengi.train import checkpoint
from sengi.train.compiling import compile_now
from sengi.train.distributed import World, end_world, start_world
from sengi.train.evaluation import Evaluations
from sengi.train.handover import Handover
from sengi.train.lifeline import Lifeline
from sengi.train.loop import Loop
from sengi.train.observer import Observer
from sengi.train.optimizer import build_optimizer, keeps_gradients
from sengi.train.run_context import RunContext
from sengi.train.run_folder import RunFolder, check_same_data, check_same_recipe, read_plan
from sengi.train.setup import DTYPES, set_up
from sengi.train.sharding import device_mesh, place
from sengi.train.stopping import StopRequest
from sengi.train.trainable import Trainable, load_trainable, make_ready
from sengi.train.turns import in_turns


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


def train(resolved: ResolvedRecipe, observer: Observer | None = None, stop_file: Path | None = None) -> RunResult:
    """Start the run of a recipe, or continue it where it stopped.

    Args:
        resolved: the recipe (:func:`sengi.recipe_sources.resolve_recipe`).
        observer: told of everything that happens, on rank 0.
        stop_file: asks to save and stop by being there, where no signal can.

    Raises:
        InputError: the request cannot be carried out; nothing was changed.
        StoppedByRequest: a signal or that file asked to stop; the state is saved, the same call continues.
        SengiError: the run failed; status.json says why, and the same call continues from the last checkpoint.
    """
    path = Path(resolved.recipe.output_dir)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest(stop_file))
        stack.callback(end_world)
        world = start_world()
        begun: list[RunFolder] = []  # once there is one, a failure is noted in it
        lifeline = stack.enter_context(Lifeline(world, lambda cause: _note_failure(world, begun, cause)))
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
            left = storage.sweep(path)
            if (scores := path / run_evaluations.FOLDER).is_dir():
                left += storage.sweep(scores)
            if left:
                told(f"removed {len(left)} left-overs of an interrupted save")

        world.on_first(claim)
        observer.plan(setup.plan)
        folder = RunFolder(path)
        begun.append(folder)
        try:
            run = RunContext(setup, world, observer, stop, folder)
            evaluations = Evaluations(run)
            stack.callback(evaluations.close)
            return _run(run, evaluations)
        except BaseException as error:
            _note_failure(world, begun, lifeline.explained(error))
            raise


def _run(run: RunContext, evaluations: Evaluations) -> RunResult:
    """Score, load, train, score."""
    run.world.on_first(lambda: _write_request(run))
    evaluations.before_training()
    handover = Handover(run, evaluations)
    handover.check_select()
    step, last = _train_model(run, evaluations, handover)
    gc.collect()  # scoring loads the checkpoint as users will: make room for it
    evaluations.questions(step)
    evaluations.tasks(step)
    if failed := evaluations.finish():
        run.observer.message(failed)
    handover.finish()
    run.world.on_first(lambda: _finish(run, handover, step, failed))
    return RunResult(run.folder.path, last, step)


def _train_model(run: RunContext, evaluations: Evaluations, handover: Handover) -> tuple[int, Path]:
    """Load, restore, train; the last step and its checkpoint. The model is gone when this returns."""
    loop = _load(run, evaluations, handover)
    loop.restore()
    if loop.step == 0:  # a run that is continued has its start scored already
        evaluations.heldout(0, loop.model, loop.autocast)
    try:
        last = loop.run()
    except BaseException as error:
        loop.saver.close(error)
        raise
    evaluations.heldout(loop.step, loop.model, loop.autocast)
    return loop.step, last


def _finish(run: RunContext, handover: Handover, step: int, failed: str) -> None:
    limit = run.setup.resolved.recipe.save_total_limit
    checkpoint.prune(run.folder.path, limit, handover.spared(), handover.place)  # those that waited to be scored
    run.folder.status(state="finished", reason=failed, step=step)


def _write_request(run: RunContext) -> None:
    setup, folder = run.setup, run.folder
    plan = setup.plan
    environment = {**describe_environment(), "world_size": run.world.size, "device": plan.device}
    folder.write_request(setup.resolved, plan.to_dict(), environment)
    storage.write_file(folder.path / "dropped.jsonl", (setup.store.path / "dropped.jsonl").read_bytes())
    if setup.contamination:
        write_contamination(folder.path, setup.contamination)
    folder.status(max_steps=plan.steps, world_size=run.world.size)


def _load(run: RunContext, evaluations: Evaluations, handover: Handover) -> Loop:
    """The base model, made padding-free, on its device or sharded, and given an optimizer."""
    recipe, world, plan = run.setup.resolved.recipe, run.world, run.setup.plan
    mesh = device_mesh(world, recipe)

    def load() -> Trainable:
        base = load_trainable(run.setup)
        family = type(base.model.lm).__name__
        if not base.model.padding_free and world.size > 1:
            raise ModelError(
                f"{family} carries state along the row, so it runs one document a call and on one process only; run it "
                "without torchrun"
            )
        if not base.model.padding_free:
            run.observer.message(f"{family} carries state along the row: one document a forward call, not packed")
        place(base.model, world.device, mesh, recipe)
        return base

    dtype = DTYPES[plan.dtype]
    read = dtype if stays_as_stored(run.setup.model_folder, recipe, dtype) else torch.float32
    base = in_turns(world, read.itemsize * run.setup.cost.parameters, load)  # it is read before a GPU takes it
    compiled = make_ready(base, run.setup, world.device, plan.torch_compile)
    if keeps_gradients(world):
        base.model.add_gradients_at_once()
    optimizer = build_optimizer(base.model, recipe)
    if compiled:
        budget, vocabulary = plan.max_tokens_per_device, base.model.lm.config.get_text_config().vocab_size
        seconds = compile_now(base.model, optimizer, world, base.autocast, budget, vocabulary)
        plain = f"; {n} of their parts do not compile and run as they are" if (n := parts_left_plain()) else ""
        run.observer.message(f"compiled the layers in {seconds:.0f} s{plain}")
    return Loop(run, evaluations, handover, base.model, optimizer, base.files, base.autocast)


def _note_failure(world: World, begun: list[RunFolder], error: BaseException) -> None:
    """Leave the cause in status.json; a failing disk must not hide it."""
    if not begun or (getattr(error, "elsewhere", False) and not world.first):
        return  # the rank it happened on knows the cause
    asked = isinstance(error, StoppedByRequest | KeyboardInterrupt)
    with contextlib.suppress(SengiError, OSError, ValueError):
        tell = begun[0].status if world.first else begun[0].last_word
        state = "stopped" if asked else "failed"
        tell(state=state, reason=str(error) or type(error).__name__, alarm=getattr(error, "alarm", None))
