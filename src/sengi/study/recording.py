"""What a run folder tells a study: its history for the judge, its state, its score. Nothing is written here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sengi import storage
from sengi.errors import InputError, StorageError
from sengi.evaluate.run_evaluations import FOLDER, TASKS, evaluation_name
from sengi.recipe import LORA_KEYS, Recipe
from sengi.recipe_sources import nearest
from sengi.statistics.gradient_noise import noise_part
from sengi.statistics.metrics import is_row_higher_better
from sengi.study.objective import HELDOUT, is_minimized, parts
from sengi.study.signals import History

# Keys that change what loss or gradient norm mean, and not only how well a run does
GROUP_KEYS = (
    "model_name_or_path",
    "data",
    "max_length",
    "overlong",
    "strategy",
    "phases",
    "loss_reduction",
    "use_peft",
    *LORA_KEYS,
)


@dataclass(frozen=True)
class Point:
    """An evaluation of the objective: samples seen before it, score, ends of its 95% interval (NaN without one)."""

    samples_seen: int
    value: float
    low: float
    high: float


class Step(NamedTuple):
    """What a study keeps of a line of dynamics.jsonl, a tenth of it: runs have many, and a study many runs.

    Attributes:
        samples_seen, loss, grad_norm: as in the line.
        noise: as in :class:`sengi.study.signals.History`.
    """

    samples_seen: int
    loss: float
    grad_norm: float
    noise: float


def step_of(record: Mapping[str, Any]) -> Step:
    """A line of dynamics.jsonl as a study keeps it."""
    norm = float(record["grad_norm"])
    noise = noise_part(norm, record.get("half_grad_norm"), record.get("half_share"))
    return Step(int(record["samples_seen"]), float(record["loss"]), norm, noise)


class Dynamics:
    """dynamics.jsonl of a run that goes on: each line is read once, unless the file was written anew.

    Attributes:
        path: the file.
        steps: all whole lines at the last look.
        last: the last of them as it was written; empty without one.
        seconds: of training that they tell.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "dynamics.jsonl"
        self._forget()

    def _forget(self) -> None:
        self.steps: list[Step] = []
        self.last: dict[str, Any] = {}
        self.seconds = 0.0
        self._file, self._read, self._before_it = -1, 0, b""

    def read(self) -> list[Step]:
        """All whole lines so far."""
        try:
            facts = self.path.stat()
        except FileNotFoundError:
            return self.steps
        if (facts.st_ino, facts.st_size) == (self._file, self._read):
            return self.steps
        if facts.st_ino != self._file or not self._goes_on():
            self._forget()
            self._file = facts.st_ino
        new, self._read = storage.read_new_lines(self.path, self._read, len(self.steps))
        self.steps += map(step_of, new)
        self.last = new[-1] if new else self.last
        self.seconds += sum(float(record["step_seconds"]) for record in new)
        self._before_it = self._before(self._read)
        return self.steps

    def _goes_on(self) -> bool:
        """Whether what was read last still stands there; a run that continues may write its file anew."""
        return self._before(self._read) == self._before_it

    def _before(self, end: int) -> bytes:
        """Up to 256 bytes, more than a time of day and a loss, before a place in the file."""
        with storage.explained(self.path, "reading"), self.path.open("rb") as file:
            file.seek(max(0, end - 256))
            return file.read(end - file.tell())


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping; empty where it is not there or not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def history(
    name: str,
    settings: str,
    steps: Sequence[Step],
    batch: int,
    warmup_steps: int,
    stopped_at: int | None = None,
    group: str = "",
) -> History:
    """The judge's view of a run.

    Args:
        name: of the run; ``settings`` a text that runs of other seeds share.
        steps: that it took.
        batch: samples a step.
        warmup_steps: steps over which its rate rises.
        stopped_at: check at which the judge stopped it.
        group: :func:`group` of its recipe.
    """
    return History(
        name=name,
        settings=settings,
        batch_size=batch,
        warmup_samples=warmup_steps * batch,
        samples_seen=tuple(step.samples_seen for step in steps),
        loss=tuple(step.loss for step in steps),
        grad_norm=tuple(step.grad_norm for step in steps),
        noise=tuple(step.noise for step in steps),
        stopped_at=stopped_at,
        group=group,
    )


def group(recipe: Recipe) -> str:
    """What a run's loss and gradient norm are those of: only runs of one group can be held against each other.

    The loss is that of a model on certain data, averaged in a certain way; the norm is over the trained parameters.
    """
    return json.dumps(recipe.model_dump(mode="json", include=set(GROUP_KEYS)), sort_keys=True)


def own_evaluations(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The evaluations of a run, by file name, without those of other suites of tasks than its own.

    ``sengi eval RUN`` may score any suite in a run folder, and a task of the same name there may be another one. The
    run's own suite is the one that scored its base model; where that is not there, the first one of each step.
    """
    base = read_mapping(folder / FOLDER / f"{evaluation_name(0, TASKS)}.json").get("data")
    for path in sorted((folder / FOLDER).glob("step-*.json")):
        content = read_mapping(path)
        kind = path.stem.split("-", 2)[-1]
        suite = kind.partition("-")[0] == TASKS
        if not suite or (kind == TASKS if base is None else content.get("data") == base):
            yield path, content


def objective_points(folder: Path, objective: str) -> list[Point]:
    """The objective at every evaluation of a run, by rising samples seen.

    Args:
        folder: the run folder.
        objective: ``heldout_loss``, or ``task/metric``.
    """
    task, metric = parts(objective)
    points: dict[int, Point] = {}
    for _, content in own_evaluations(folder):
        for row in content.get("scores", []):
            if (row["task"], row["metric"], row["group"]) == (task, metric, "all") and row["value"] is not None:
                value, low, high = (
                    math.nan if row[key] is None else float(row[key]) for key in ("value", "low", "high")
                )
                seen = int(content.get("samples_seen", 0))
                points.setdefault(seen, Point(seen, value, low, high))
    return [points[seen] for seen in sorted(points)]


def final_score(folder: Path, objective: str) -> Point:
    """The objective after a finished run's last step.

    Raises:
        StorageError: it was not evaluated there.
    """
    points = objective_points(folder, objective)
    records = storage.read_lines(folder / "dynamics.jsonl")
    end = int(records[-1]["samples_seen"]) if records else 0
    if not points or not records or points[-1].samples_seen < end:
        scored = ", ".join(sorted(_scores(folder, end))) or "nothing"
        raise StorageError(f"{folder}: has no score of '{objective}' after its last step; it scored {scored} there")
    return points[-1]


def has_objective(folder: Path, objective: str, kinds: Sequence[str]) -> bool:
    """Whether it is known that a run scores the objective: as soon as its base model has been scored.

    Args:
        folder: the run folder.
        objective: as in :func:`objective_points`.
        kinds: of scores that the recipe asks for: ``questions``, ``tasks``.

    Raises:
        InputError: it does not; names the scores there are. Or its task calls the other direction better than the
            study, which goes by the metric's name.
    """
    if objective == HELDOUT:
        return True
    if not all((folder / FOLDER / f"step-{0:08d}-{kind}.json").is_file() for kind in kinds):
        return False
    if not objective_points(folder, objective):
        known = sorted(_scores(folder))
        raise InputError(
            f"objective '{objective}' is no score of these runs, which have {', '.join(known)}"
            f"{nearest(objective, known)}; correct the study file"
        )
    minimized = is_minimized(objective)
    if any(is_row_higher_better(row) == minimized for row in _rows(folder) if _name(row) == objective):
        better, sought = ("higher", "lower") if minimized else ("lower", "higher")
        raise InputError(
            f"objective '{objective}': its task says that {better} is better, and the study would look for the "
            f"{sought} one; name another score in the study file"
        )
    return True


def _scores(folder: Path, after: int = 0) -> set[str]:
    """Names of the scores that a run has after so many samples or more."""
    return {_name(row) for row in _rows(folder, after)}


def _rows(folder: Path, after: int = 0) -> list[dict[str, Any]]:
    return [
        row
        for _, content in own_evaluations(folder)
        if int(content.get("samples_seen", 0)) >= after
        for row in content.get("scores", [])
    ]


def _name(row: dict[str, Any]) -> str:
    return f"{row['task']}/{row['metric']}"
