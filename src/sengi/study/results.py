"""A study folder as the report and the claims read it: every run with its settings, state, curves and single results.

No result is written here. The run folders are the truth; study.json only says which runs were at work last, and the
locks whether anybody still is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sengi import storage
from sengi.errors import DataError, InputError, RecipeError
from sengi.evaluate.saved_samples import SavedSamples, load_samples
from sengi.recipe_sources import resolve_recipe
from sengi.study.judge import JudgeSettings
from sengi.study.lease import at_work, beats_elsewhere
from sengi.study.objective import parts
from sengi.study.recording import Point, group, history, objective_points, own_evaluations, read_mapping, step_of
from sengi.study.replay import Recording
from sengi.study.replay_study import judge_settings
from sengi.study.scheduler import REQUEST, SUMMARY
from sengi.study.signals import History
from sengi.study.space import Run, grid, known_points, runs_of, settings_text
from sengi.study.study_file import StudyFile, StudyRequest, read_study
from sengi.study.verdicts import FILE as VERDICTS
from sengi.study.verdicts import last_words
from sengi.study.watched import OUTCOME

MATCHES = 1e-6  # a group's score is recognised by its value; results files keep all digits
AT_WORK = ("running", "stopping")  # states in study.json
Items = dict[str, tuple[float, float]]  # question -> (result, weight)


@dataclass(frozen=True)
class RunResult:
    """One run.

    Attributes:
        name, point, seed, settings: as in study.json.
        recipe: its resolved recipe.
        state: ``finished``, ``stopped``, ``failed``, ``running``, ``unfinished`` or ``waiting`` (not begun).
        by_alarm: whether an alarm stopped it, and not the judge.
        reason: why it failed, was stopped or waits, or why a finished run has no score.
        score: the objective after its last step; None for runs that are not finished.
        evaluations: of the objective, by rising samples seen, 0 being the untouched model.
        items: single results behind the score, by question or held-out conversation; empty where none were saved.
        history: its training.
        tokens, seconds: of all steps.
        devices: GPUs or, on a machine without, CPU cores that it used; ``device`` is the word for one of them.
        processes: of the training.
        verdicts: lines of verdicts.jsonl about it, as written.
        folder: the run folder.
    """

    name: str
    point: int
    seed: int
    settings: dict[str, Any]
    recipe: dict[str, Any]
    state: str
    reason: str
    score: Point | None
    history: History
    evaluations: tuple[Point, ...] = ()
    items: Items = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    devices: int = 1
    device: str = "core"
    processes: int = 1
    verdicts: tuple[dict[str, Any], ...] = ()
    folder: Path = Path()
    by_alarm: bool = False

    @property
    def samples_seen(self) -> int:
        """Samples it trained on."""
        return self.history.samples_seen[-1] if self.history.samples_seen else 0

    @property
    def lost(self) -> bool:
        """Whether it failed or an alarm stopped it."""
        return self.state == "failed" or self.by_alarm

    @property
    def verdict(self) -> tuple[str, str]:
        """State and reason of the judge's last word on it; empty without one."""
        word = last_words(self.verdicts).get(self.name)
        return (word.state, word.reason) if word is not None else ("", "")


@dataclass(frozen=True)
class StudyResults:
    """All runs of a study.

    Attributes:
        folder: the study folder.
        objective, minimize, budget_samples: of the study file; ``minimize`` says that a lower score is better.
        keys: recipe keys of its space, in order.
        seeds: of the study file.
        searched: whether Optuna chose the points.
        mode: of early termination.
        state: of the study when it last wrote study.json.
        judge: settings of the judge, or its defaults.
        model: that was trained.
        runs: by name.
        preset: the study preset that asks its question; empty without one.
    """

    folder: Path
    objective: str
    minimize: bool
    budget_samples: int
    keys: tuple[str, ...]
    seeds: tuple[int, ...]
    searched: bool
    mode: str
    state: str
    judge: JudgeSettings
    model: str
    runs: tuple[RunResult, ...]
    preset: str = ""

    @property
    def scored(self) -> list[RunResult]:
        """Runs with a final score."""
        return [run for run in self.runs if run.score is not None]

    def quality(self, run: RunResult) -> float:
        """The score of a finished run, turned so that higher is better."""
        assert run.score is not None
        return -run.score.value if self.minimize else run.score.value

    def recordings(self) -> list[Recording]:
        """Its finished runs for the replay and the early signals."""
        return [Recording(run.history, run.evaluations) for run in self.scored]


def is_study(folder: Path) -> bool:
    """Whether a folder is a study's. A run of a study has a request, too, but that is a recipe and names none."""
    return "recipe" in read_mapping(folder / REQUEST)


def read_results(folder: Path) -> StudyResults:
    """Read a study folder, finished or not.

    Raises:
        InputError: it is none.
    """
    if not is_study(folder):
        raise InputError(f"{folder}: no study folder (it has no {REQUEST}); give the output_dir of a study")
    request = read_study(folder / REQUEST)
    file, summary = request.file, read_mapping(folder / SUMMARY)
    rows = summary.get("runs")
    listed = {row["name"]: row for row in rows} if isinstance(rows, list) else {}
    alive = any(row.get("state") in AT_WORK for row in listed.values()) and at_work(folder)
    verdicts = storage.read_lines(folder / VERDICTS)
    runs = []
    for point, settings in sorted(_points(file, folder).items()):
        for run in runs_of(file, point, settings, folder):
            said = tuple(line for line in verdicts if line["run"] == run.name)
            runs.append(_read_run(run, request, said, listed.get(run.name, {}), alive))
    return StudyResults(
        folder=folder,
        objective=file.objective,
        minimize=file.minimize,
        budget_samples=file.budget_samples,
        keys=tuple(file.space),
        seeds=tuple(file.seeds),
        searched=file.searched,
        mode=file.early_termination.mode,
        state=str(summary.get("state", "not begun")),
        judge=judge_settings(file),
        model=str(request.base.get("model_name_or_path", "")),
        runs=tuple(runs),
        preset=file.preset or "",
    )


def _points(file: StudyFile, folder: Path) -> dict[int, dict[str, Any]]:
    if file.searched:
        return known_points(folder, file.space)
    return dict(enumerate(grid(file), start=1))


def _read_run(
    run: Run, request: StudyRequest, verdicts: Sequence[dict[str, Any]], listed: Mapping[str, Any], alive: bool
) -> RunResult:
    """One run; ``listed`` is its row in study.json, ``alive`` whether a process of this machine works on the study."""
    objective = request.file.objective
    values = read_mapping(run.request) or request.run_values(run.settings, run.seed, run.folder)
    recipe = resolve_recipe(values=values).recipe
    records = storage.read_lines(run.folder / "dynamics.jsonl")
    outcome, status = read_mapping(run.folder / OUTCOME), read_mapping(run.folder / "status.json")
    points = objective_points(run.folder, objective)
    state, reason = _state(outcome, status, listed, bool(records), alive)
    seen = int(records[-1]["samples_seen"]) if records else 0
    scored = state == "finished" and bool(points) and points[-1].samples_seen >= seen and bool(records)
    if state == "finished" and not scored:
        reason = f"it has no score of '{objective}' after its last step"
    devices, device, processes = _devices(run.folder)
    warmup = recipe.warmup_count(int(recipe.max_steps or 0))
    return RunResult(
        name=run.name,
        point=run.point,
        seed=run.seed,
        settings=run.settings,
        recipe=recipe.model_dump(mode="json"),
        state=state,
        reason=reason,
        score=points[-1] if scored else None,
        history=history(
            run.name,
            settings_text(run.settings),
            [step_of(record) for record in records],
            recipe.effective_batch_size,
            warmup,
            group=group(recipe),
        ),
        evaluations=tuple(points),
        items=read_items(run.folder, objective, points[-1]) if scored else {},
        tokens=sum(int(record.get("num_tokens", 0)) for record in records),
        seconds=sum(float(record.get("step_seconds", 0.0)) for record in records),
        devices=devices,
        device=device,
        processes=processes,
        verdicts=tuple(verdicts),
        folder=run.folder,
        by_alarm=state == "stopped" and outcome.get("check") is None,
    )


def _state(
    outcome: Mapping[str, Any], status: Mapping[str, Any], listed: Mapping[str, Any], begun: bool, alive: bool
) -> tuple[str, str]:
    if outcome.get("state") in ("finished", "stopped", "failed"):
        return str(outcome["state"]), str(outcome.get("reason", ""))
    if status.get("state") == "finished":
        return "finished", ""
    if listed.get("state") in AT_WORK and (alive or beats_elsewhere(status)):  # a killed study left its table as it was
        return "running", ""
    waits = str(listed.get("reason", "")) if listed.get("state") == "waiting" else ""
    return ("unfinished" if begun else "waiting"), waits


def _devices(folder: Path) -> tuple[int, str, int]:
    """How many devices a run used, what they are, and its processes."""
    facts = read_mapping(folder / "environment.json")
    processes = int(facts.get("world_size", 1))
    if str(facts.get("device", "cpu")).startswith("cuda"):
        return processes, "GPU", processes
    cpu = facts.get("cpu")
    threads = int(cpu.get("torch_threads", 1)) if isinstance(cpu, dict) else 1
    return processes * threads, "core", processes


def read_items(folder: Path, objective: str, point: Point) -> Items:
    """Single results behind a score of a run, by question; empty where none were saved or they do not add up to it.

    Args:
        folder: the run folder.
        objective: ``heldout_loss``, or ``task/metric``.
        point: the score.
    """
    task, metric = parts(objective)
    for path, content in own_evaluations(folder):
        items_file = path.with_name(f"{path.stem}.items.jsonl")
        if int(content.get("samples_seen", -1)) != point.samples_seen or not items_file.exists():
            continue
        try:
            saved = load_samples(items_file)
        except (DataError, RecipeError):
            continue
        for items in _candidates(saved, task, metric):
            total = sum(weight for _, weight in items.values())
            if total > 0 and abs(sum(v * w for v, w in items.values()) / total - point.value) < MATCHES:
                return items
    return {}


def _candidates(saved: SavedSamples, task: str, metric: str) -> list[Items]:
    """What may lie behind a score: a task's questions; those of a group, weighing the same or by task."""
    leaves = [task] if task in saved.tasks else saved.groups.get(task, [])
    found = []
    names = dict.fromkeys(n for leaf in leaves for n in saved.tasks[leaf].metrics)
    for name in [n for n in names if metric in (n, n.partition(",")[0])]:
        parts = {leaf: saved.tasks[leaf].metrics[name] for leaf in leaves if name in saved.tasks[leaf].metrics}
        for by_task in (False, True):
            items: Items = {}
            for leaf, part in parts.items():
                scale = 1 / sum(weight for _, weight in part.values()) if by_task else 1.0
                items |= {f"{leaf}/{id_}": (value, weight * scale) for id_, (value, weight) in part.items()}
            if items and all(math.isfinite(value) for value, _ in items.values()):
                found.append(items)
    return found
