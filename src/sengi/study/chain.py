"""A study of several stages: studies one after another, each from the best settings of those before it.

Each stage is an ordinary study in a folder of its own, ``1-<name>``, ``2-<name>``, ... What was chosen after a stage is
written down before the next one begins, and stays: a chain that is killed anywhere and started again goes on with the
same settings, and no finished stage is opened again.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sengi import storage
from sengi.errors import InputError, SengiError, StoppedByRequest
from sengi.recipe_sources import read_yaml
from sengi.study.dimensions import is_searched, recipe_values
from sengi.study.executor import executor_for
from sengi.study.recording import read_mapping
from sengi.study.run_executor import RunExecutor
from sengi.study.scheduler import REQUEST, STOP, SUMMARY, Rows, StudyObserver, check_same_study, run_study
from sengi.study.space import settings_text
from sengi.study.study_file import Executor, StudyRequest

CHOICE = "choice.json"  # in the folder of a stage: what the next ones take from it


@dataclass(frozen=True)
class Choice:
    """What a stage decided.

    Attributes:
        settings: of the best point.
        score: its mean over seeds.
        separated: whether the scores tell it from the second best.
        sentence: all of it in words.
    """

    settings: dict[str, Any]
    score: float
    separated: bool
    sentence: str


def run_chain(
    request: StudyRequest,
    observer: StudyObserver | None = None,
    make_executor: Callable[[Executor], RunExecutor] = executor_for,
) -> Rows:
    """Run the stages of a study, or continue them where they were left.

    Args:
        request: a study file with ``stages``.
        observer: told of everything that happens.
        make_executor: makes what trains the runs.

    Returns:
        The rows of all stages.

    Raises:
        InputError: the folder holds another study, or another process works on it.
        SengiError: no run of a stage finished, so nothing can be chosen.
        StoppedByRequest: every run saved its state, the same call continues.
    """
    folder = request.folder
    _check_same_stages(request)
    storage.create_folder(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(storage.lock(folder))
        (folder / STOP).unlink(missing_ok=True)  # of an earlier session; who asks from here on means this one
        storage.sweep(folder)
        _check_same_stages(request)
        storage.write_file(folder / REQUEST, request.to_json())
        stack.callback((folder / STOP).unlink, missing_ok=True)
        return Chain(request, observer or StudyObserver(), make_executor).run()


def _check_same_stages(request: StudyRequest) -> None:
    """As for every study; and the stages are in the order they had."""
    check_same_study(request.folder, request)
    path = request.folder / REQUEST
    if path.exists() and list(read_yaml(path)[0]["stages"]) != list(request.file.stages):
        raise InputError(
            f"{request.folder}: holds a study whose stages come in another order; restore it to continue, or choose "
            "another output_dir"
        )


class Chain(StudyObserver):
    """The stages of one study; hears what the current one says and passes it on, with the rows of those before it."""

    def __init__(
        self, request: StudyRequest, observer: StudyObserver, make_executor: Callable[[Executor], RunExecutor]
    ) -> None:
        self.request, self.observer, self.make_executor = request, observer, make_executor
        self._done: Rows = []
        self._shown: Rows = []
        self._current = ""
        self._choices: dict[str, Choice] = {}

    def run(self) -> Rows:
        """Work through the stages."""
        base, file = self.request.base, self.request.file
        for number, (name, space) in enumerate(file.stages.items(), start=1):
            self._current = f"{number}-{name}"
            own = {"space": space, "stages": {}, "num_trials": file.num_trials if is_searched(space) else None}
            stage = file.model_copy(update={**own, "output_dir": str(self.request.folder / self._current)})
            try:
                choice = self._stage(StudyRequest(stage, base, chain=self.request.folder))
            except StoppedByRequest:
                self._publish(self._shown, "stopped")
                raise
            base = {**base, **recipe_values(space, choice.settings)}
            self._choices[self._current] = choice
        self._publish(self._done, "finished")
        return self._done

    def _stage(self, stage: StudyRequest) -> Choice:
        """One stage: what it chose, now or in an earlier session."""
        facts = read_mapping(stage.folder / CHOICE)
        if not facts:
            rows = run_study(stage, self, self.make_executor)
            choice = choose(self._current, rows, stage.file.objective, stage.file.minimize)
            storage.write_json(stage.folder / CHOICE, vars(choice))
            self.observer.message(choice.sentence)
        else:
            choice = Choice(**facts)
            rows = json.loads((stage.folder / SUMMARY).read_text(encoding="utf-8"))["runs"]
        self._done = self._done + self._named(rows)
        return choice

    def _named(self, rows: Rows) -> Rows:
        return [{**row, "name": f"{self._current}/{row['name']}"} for row in rows]

    def message(self, text: str) -> None:
        """Pass it on with the name of the stage."""
        self.observer.message(f"{self._current}: {text}")

    def rows(self, rows: Rows) -> None:
        """Pass them on behind those of the stages before."""
        self._publish(self._done + self._named(rows), "running")

    def _publish(self, rows: Rows, state: str) -> None:
        file = self.request.file
        facts = {
            "state": state,
            "objective": file.objective,
            "minimize": file.minimize,
            "budget_samples": file.budget_samples,
            "updated": time.time(),
            "best": {key: value for choice in self._choices.values() for key, value in choice.settings.items()},
            "stages": [
                {"name": name, "folder": str(self.request.folder / name), **vars(choice)}
                for name, choice in self._choices.items()
            ],
            "runs": rows,
        }
        self._shown = rows
        storage.write_json(self.request.folder / SUMMARY, facts)
        self.observer.rows(rows)


def choose(stage: str, rows: Rows, objective: str, minimize: bool) -> Choice:
    """The point with the best mean score over its seeds, and whether the second best can be told from it.

    Two points are told apart when the mean intervals of their scores do not overlap and, with two seeds or more, their
    means are further apart than the seeds of either one are. Both is stricter than a test of paired answers; the
    report of the stage has those. A point that lost a run, by a failure or an alarm, comes after those that lost none:
    the seeds that survived are no fair sample of it.

    Args:
        stage: its name, for the sentence.
        rows: of study.json.
        objective: of the study; ``minimize`` says that a lower score is better.

    Raises:
        SengiError: no run finished.
    """
    points: dict[str, Rows] = {}
    lost: dict[str, list[str]] = {}
    for row in rows:
        if row["score"] is not None:
            points.setdefault(settings_text(row["settings"]), []).append(row)
        elif row["state"] == "failed" or (row["state"] == "stopped" and row["verdict"] != "stop"):  # or by an alarm
            lost.setdefault(settings_text(row["settings"]), []).append(f"{row['name']} {row['state']}")
    if not points:
        raise SengiError(
            f"{stage}: none of its {len(rows)} runs finished, so nothing can be chosen for the next stage; see their "
            "reasons by 'sengi study status'; the same command tries them again"
        )
    ranked = sorted(points, key=lambda text: (text in lost, _mean(points[text]) * (1 if minimize else -1)))
    best, score = ranked[0], _mean(points[ranked[0]])
    told = f"{stage}: {best} is best, {objective} {score:.4f}{_interval_text(points[best])}"
    missing = len(rows) - sum(len(point) for point in points.values())
    left = f"; {missing} of {len(rows)} runs have no score" if missing else ""
    behind = [f"{text} ({', '.join(lost[text])})" for text in ranked if text in lost]
    left += f"; behind those that lost no run: {'; '.join(behind)}" if behind else ""
    settings = dict(points[best][0]["settings"])
    if len(ranked) == 1:
        return Choice(settings, score, False, f"{told}; there is no other point to compare it with{left}")
    second = ranked[1]
    separated = _apart(points[best], points[second])
    word = "is told apart from it" if separated else "is not told apart from it: the choice may be chance"
    other = f"{second}, {_mean(points[second]):.4f}{_interval_text(points[second])}, {word}"
    return Choice(settings, score, separated, f"{told}; {other}{left}")


def _mean(rows: Rows) -> float:
    return statistics.fmean(row["score"] for row in rows)


def _interval(rows: Rows) -> tuple[float, float]:
    """Ends of the interval, means over seeds; NaN where a run has none."""
    ends = [row["interval"] or (math.nan, math.nan) for row in rows]
    return statistics.fmean(low for low, _ in ends), statistics.fmean(high for _, high in ends)


def _interval_text(rows: Rows) -> str:
    low, high = _interval(rows)
    seeds = f", {len(rows)} seeds" if len(rows) > 1 else ""
    return f" ({low:.4f} to {high:.4f}{seeds})" if math.isfinite(low + high) else ""


def _apart(one: Rows, other: Rows) -> bool:
    (low, high), (other_low, other_high) = _interval(one), _interval(other)
    spread = max(max(row["score"] for row in rows) - min(row["score"] for row in rows) for rows in (one, other))
    # NaN compares as false: without an interval nothing is told apart
    return (high < other_low or other_high < low) and abs(_mean(one) - _mean(other)) > spread


def stage_folders(folder: Path) -> list[Path]:
    """The studies in a study folder: those of its stages that were begun, or the folder itself where it has none."""
    stages = list(read_mapping(folder / REQUEST).get("stages") or ())
    named = [folder / f"{number}-{name}" for number, name in enumerate(stages, start=1)]
    return [path for path in named if (path / REQUEST).is_file()] if stages else [folder]
