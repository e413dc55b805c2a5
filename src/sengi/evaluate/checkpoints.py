"""All checkpoints of a run, scored by one suite: timelines of scores, the best checkpoint, samples to the peak."""

from __future__ import annotations

import difflib
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sengi import storage
from sengi.errors import CheckpointError, DataError, InputError, NonFiniteError, SengiError, StorageError
from sengi.evaluate.contamination import FILE, contamination_note, find_contamination, write_contamination
from sengi.evaluate.run_evaluations import (
    checkpoint_samples,
    read_results,
    read_tasks,
    timelines,
    unfinished,
    write_tasks,
)
from sengi.evaluate.run_scores import ScoreLine, by_task, score_line
from sengi.evaluate.suite import Progress, Suite, evaluate, fingerprint
from sengi.evaluation import Evaluation
from sengi.harness.leaderboard import LEADERBOARDS
from sengi.harness.ranks import join_ranks, on_first
from sengi.model.resolve import resolve_model
from sengi.recipe_sources import resolve_recipe

PREFIX = "checkpoint-"


@dataclass
class RunEvaluation:
    """What a suite found over a run.

    Attributes:
        run: the run folder.
        steps: the steps that are scored, 0 for the base model.
        lines: one a score, as the suite gives them.
        selected: the line that chooses the best checkpoint.
        members: of each group or leaderboard, the tasks and groups in it.
        excluded: questions that could not be scored, with the ``step`` of the checkpoint.
        notes: what was left out and why, and what a reader of the scores must know.
        seconds: time of the evaluations that were made now; those found in the run cost nothing.
    """

    run: Path
    steps: list[int]
    lines: list[ScoreLine]
    selected: ScoreLine
    members: dict[str, list[str]] = field(default_factory=dict)
    excluded: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def evaluate_run(
    run: Path, suite: Suite, *, select: str | None = None, progress: Progress | None = None
) -> RunEvaluation:
    """Score the base model and every checkpoint of a run that this suite has not scored yet.

    The run may be training meanwhile. An evaluation that is interrupted goes on where it stopped at the next call.
    Under torchrun all processes call this and share the benchmarks of each checkpoint; the first one reads and writes
    the run, and only its result says anything.

    Args:
        run: a folder with recipe.yaml and checkpoints.
        suite: what to ask, checked by :func:`sengi.evaluate.suite.check`.
        select: ``task/metric`` (or a task alone) that chooses the best checkpoint; None takes the first score.
        progress: called with (questions done, questions in all, checkpoint and task).

    Raises:
        InputError: no run, nothing to score, or no such score to select by.
        SengiError: an evaluation failed; what is scored stays.
    """
    ranks = join_ranks()
    result = RunEvaluation(run, [], [], selected=_NOTHING)

    def unscored() -> list[Any]:
        recipe = _recipe_file(run)
        length = resolve_recipe(recipe).recipe.max_length if suite.files("heldout") else None
        data = fingerprint(replace(suite, max_length=length))
        models = _models(run, result.notes, scored=set(read_tasks(run, data)))
        return [length, data, [(step, str(folder)) for step, folder in models]]

    length, data, models = on_first(ranks, unscored)
    on_first(ranks, lambda: result.notes.extend(_contamination(run, suite, data, progress)))
    suite = replace(suite, max_length=length)
    for step, folder in models:
        model = Path(folder)
        name = f"step {step}" if step else "base model"

        def show(done: int, total: int, task: str, name: str = name) -> None:
            if progress is not None:
                progress(done, total, f"{name}: {task}")

        try:
            result.seconds += score_step(run, step, model, suite, data, show).seconds
        except (CheckpointError, NonFiniteError) as error:  # of this checkpoint alone: the others are as good as ever
            result.notes.append(f"{name if step else 'the base model'} is left out: {error}")
        except SengiError:
            if model.exists():
                raise
            result.notes.append(f"step {step} is left out: training removed it (save_total_limit) before it was scored")
    if ranks.rank:
        return result
    evaluations = read_tasks(run, data)
    if not evaluations:
        raise InputError(f"{run}: nothing could be scored ({'; '.join(result.notes) or 'no checkpoint in it'})")
    result.steps = sorted(evaluations)
    items = {step: by_task(read_results(evaluation)) for step, evaluation in evaluations.items()}
    parts: dict[str, list[str]] = {}
    for step, evaluation in sorted(evaluations.items()):
        parts |= {group: tasks for group, tasks in evaluation.get("group_subtasks", {}).items() if tasks}
        result.excluded += [{"step": step, **row} for row in evaluation.get("excluded", [])]
    result.lines = [score_line(*key, points, items, parts) for key, points in timelines(evaluations).items()]
    result.selected = _selected(result.lines, select)
    result.members = {name: [part.task for part in board] for name, board in LEADERBOARDS.items()} | parts
    result.notes += _notes(evaluations)
    return result


def score_step(
    run: Path, step: int, model: Path, suite: Suite, data: str, progress: Progress | None = None
) -> Evaluation:
    """Score one checkpoint of a run and keep the result in its ``evaluations/``.

    Args:
        run: the run folder.
        step: of the checkpoint; 0 for the base model.
        model: its folder, read as users read it; every byte of a checkpoint is verified first.
        suite: what to ask.
        data: the suite's fingerprint.
        progress: called with (questions done, questions in all, task).

    Raises:
        CheckpointError: the checkpoint is incomplete or changed.
        SengiError: model or tasks cannot be used, or the disk failed; answers so far are kept for the next try.
    """
    ranks = join_ranks()
    samples_seen = on_first(ranks, lambda: checkpoint_samples(model) if step else 0)
    with ExitStack() as stack:
        cache = on_first(ranks, lambda: str(stack.enter_context(unfinished(run, step, data))))
        evaluation = evaluate(model, suite, cache=Path(cache), progress=progress)
        on_first(ranks, lambda: write_tasks(run, step, data, str(model), samples_seen, evaluation))
    return evaluation


def _contamination(run: Path, suite: Suite, data: str, progress: Progress | None) -> list[str]:
    """What of the suite stands in the run's training data, in a sentence and in a file of the run."""

    def show(share: float) -> None:
        if progress is not None:
            progress(round(100 * share), 100, "comparing questions with the training data, %")

    try:
        reports = find_contamination(resolve_recipe(_recipe_file(run)).recipe, suite, data, progress=show)
        write_contamination(run, reports)
    except DataError as error:
        return [f"the questions were not compared with the training data: {error}"]
    except StorageError as error:  # a run that can only be read has scores all the same
        return [note, f"what was compared is not kept: {error}"] if (note := contamination_note(reports)) else []
    note = contamination_note(reports)
    return [f"{note}; {run / FILE} lists them"] if note else []


def _recipe_file(run: Path) -> Path:
    if not (run / "recipe.yaml").is_file():
        raise InputError(f"{run}: no run folder (recipe.yaml is missing); give the output_dir of a recipe")
    return run / "recipe.yaml"


def _models(run: Path, notes: list[str], scored: set[int]) -> list[tuple[int, Path]]:
    """Steps to score and their folders, the base first."""
    folders = storage.published(run, PREFIX)
    if not folders and not scored - {0}:
        raise InputError(f"{run}: no checkpoint in it to score; train first, or name a model")
    models = [(int(folder.name.removeprefix(PREFIX)), folder) for folder in folders]
    models = [(step, folder) for step, folder in models if step not in scored]
    if 0 not in scored:
        try:
            base = resolve_model(resolve_recipe(_recipe_file(run)).recipe.model_name_or_path)
            models.insert(0, (0, base))
        except InputError as error:
            notes.append(f"the base model is left out: {error}")
    return models


def _notes(evaluations: dict[int, dict[str, Any]]) -> list[str]:
    """What the evaluations note, each sentence once, with the steps where it is not of all."""
    steps: dict[str, list[int]] = {}
    for step, evaluation in sorted(evaluations.items()):
        for note in evaluation.get("notes", []):
            steps.setdefault(str(note), []).append(step)
    return [
        note if len(of) == len(evaluations) else f"step {', '.join(map(str, of))}: {note}" for note, of in steps.items()
    ]


def _selected(lines: list[ScoreLine], select: str | None) -> ScoreLine:
    """The line that ``select`` names: whole name, or task alone."""
    if not lines:
        raise InputError("the tasks gave no score: every question was excluded; see the evaluations' excluded lists")
    if select is None:
        return lines[0]
    for line in lines:
        if select in (line.name, line.task):
            return line
    names = [line.name for line in lines]
    near = difflib.get_close_matches(select, names, n=3, cutoff=0.3) or names[:3]
    raise InputError(f"--select {select}: no such score; there is {', '.join(near)} (all are kept, only choose again)")


def check_select(select: str, names: list[str]) -> None:
    """Refuse a score of a task that is not asked, before anything is scored.

    Args:
        select: as for :func:`evaluate_run`.
        names: of tasks and groups that scores may have, from :func:`sengi.evaluate.suite.check`.

    Raises:
        InputError: none of them is its task; the nearest names.
    """
    task = select.partition("/")[0]
    if task not in names:
        near = difflib.get_close_matches(task, names, n=3, cutoff=0.3) or names[:3]
        raise InputError(f"--select {select}: {task} is not among --tasks; there is {', '.join(near)}")


_NOTHING = ScoreLine("", "", "all", True, None, [])
