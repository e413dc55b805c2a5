"""Read one run folder as it is: young, failed, torn or complete. Nothing is written here.

Every file may be missing and every value of another kind than expected: what cannot be used is left out and
named in ``RunFolder.missing`` or ``RunFolder.repairs``, and the report prints both lists.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from sengi.errors import InputError
from sengi.statistics.metrics import is_row_higher_better

DYNAMICS_NUMBERS = (
    "step",
    "epoch",
    "samples_seen",
    "num_tokens",
    "num_supervised_tokens",
    "loss",
    "grad_norm",
    "half_grad_norm",
    "half_share",
    "learning_rate",
    "tokens_per_second",
    "mfu",
    "step_seconds",
    "data_wait_seconds",
    "peak_memory_bytes",
)
# What a page says of a file that is not there.
EXPECTED = {
    "recipe.yaml": "the resolved recipe",
    "plan.json": "the plan: data summary, origins of values, forecast",
    "environment.json": "versions and hardware",
    "status.json": "state and heartbeat",
    "dynamics.jsonl": "the record of the steps: no curves",
}
EVALUATION_NAME = re.compile(r"step-(\d{1,12})(-[^/]*)?\.(items\.jsonl|json)")


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one evaluation; ``low`` and ``high`` are NaN where no interval was written.

    ``data`` names the data it was measured on; scores of other data are not compared.
    """

    task: str
    metric: str
    group: str
    value: float
    low: float
    high: float
    n: int
    data: str = ""
    higher_is_better: bool = True


@dataclass(slots=True)
class Evaluation:
    """All scores and answers at one step, whatever number of files they came in.

    Attributes:
        step: optimizer steps taken before it; 0 is the untouched model.
        samples_seen: samples trained on before it; NaN where the files do not say.
        scores: in the order of the files.
        items: single answers by (task, id, metric), as they were written; of each kind of evaluation only those of
            its first and its last step, which are compared (a run of benchmarks has millions).
    """

    step: int
    scores: list[Score] = field(default_factory=list)
    items: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    samples_seen: float = math.nan


@dataclass(slots=True)
class RunFolder:
    """A run folder in memory.

    Attributes:
        path: the folder.
        recipe, plan, environment, status: their files; empty when missing.
        dynamics: one float64 column a key of ``DYNAMICS_NUMBERS``, shape (steps,), NaN where a value is missing.
        phases: phase of each step, same order.
        handovers: of a phased run, the records of phases.json.
        evaluations: by step, ascending.
        checkpoints: steps of the ``checkpoint-<step>`` folders, ascending.
        missing: files that a complete run has and this one lacks.
        repairs: what was skipped or corrected while reading, a sentence each.
    """

    path: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    dynamics: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)
    handovers: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of step records."""
        return len(self.phases)


def read_run(path: Path) -> RunFolder:
    """Read a run folder.

    Args:
        path: the folder that ``sengi train`` wrote (``output_dir`` of its recipe).

    Raises:
        InputError: there is no such folder, or nothing in it is of a run.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such run folder; give the folder named as output_dir in the recipe")
    run = RunFolder(path)
    run.recipe = _mapping(run, "recipe.yaml")
    run.plan = _mapping(run, "plan.json")
    run.environment = _mapping(run, "environment.json")
    run.status = _mapping(run, "status.json")
    if (path / "phases.json").exists():
        ended = _mapping(run, "phases.json").get("phases")
        run.handovers = [as_mapping(record) for record in ended] if isinstance(ended, list) else []
    _read_dynamics(run)
    _read_evaluations(run)
    found = (re.fullmatch(r"checkpoint-(\d{1,12})", entry.name) for entry in path.iterdir() if entry.is_dir())
    run.checkpoints = sorted(int(match[1]) for match in found if match)
    if not run.evaluations:
        run.missing.append("evaluations/: the scores (set eval_data, eval_questions or eval_tasks in the recipe)")
    if len(run.missing) == len(EXPECTED) + 1 and not run.checkpoints:
        raise InputError(f"{path}: not a run folder (no recipe.yaml, status.json or dynamics.jsonl in it) and no study")
    return run


def as_number(value: Any) -> float:
    """``value`` as a float; NaN for None, text, lists and booleans."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def as_mapping(value: Any) -> dict[str, Any]:
    """``value`` if it is a mapping, with text keys; else an empty one."""
    return {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else {}


def _mapping(run: RunFolder, name: str) -> dict[str, Any]:
    """A YAML or JSON file that holds one mapping; noted when missing or not readable."""
    text = _text(run, run.path / name)
    if text is None:
        run.missing.append(f"{name}: {EXPECTED[name]}")
        return {}
    try:
        loaded = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        run.repairs.append(f"{name} cannot be read and is left out ({_first_line(error)})")
        return {}
    if not isinstance(loaded, dict):
        run.repairs.append(f"{name} holds no mapping and is left out")
    return as_mapping(loaded)


def _text(run: RunFolder, file: Path) -> str | None:
    """Content of a file, None when it is not there; bytes that are no UTF-8 become marks."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        run.repairs.append(f"{file.name} cannot be read and is left out ({_first_line(error)})")
        return None


def _records(run: RunFolder, file: Path) -> Iterator[dict[str, Any]]:
    """The mappings of a JSON Lines file; a torn last line and broken ones are counted, not raised."""
    lines = (_text(run, file) or "").split("\n")
    broken = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield record
        elif number == len(lines):
            run.repairs.append(f"{file.name}: the last line was cut while it was written and is left out")
        else:
            broken.append(number)
    if broken:
        shown = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        run.repairs.append(f"{file.name}: {len(broken)} unreadable lines left out (line {shown})")


def _read_dynamics(run: RunFolder) -> None:
    """Fill the columns; a step that was written twice (before and after a resume) counts once, the last time."""
    file = run.path / "dynamics.jsonl"
    by_step: dict[float, dict[str, Any]] = {}
    repeated = nameless = 0
    for record in _records(run, file):
        step = as_number(record.get("step"))
        if not math.isfinite(step):
            nameless += 1
            continue
        repeated += step in by_step
        by_step[step] = record
    if repeated:
        run.repairs.append(f"dynamics.jsonl: {repeated} steps are written twice; the later record counts")
    if nameless:
        run.repairs.append(f"dynamics.jsonl: {nameless} records without a step left out")
    ordered = [by_step[step] for step in sorted(by_step)]
    run.phases = [str(record.get("phase") or "") for record in ordered]
    run.dynamics = {
        key: np.array([as_number(record.get(key)) for record in ordered], dtype=np.float64) for key in DYNAMICS_NUMBERS
    }
    if not ordered:
        run.missing.append(f"{file.name}: {EXPECTED[file.name]}")


def _read_evaluations(run: RunFolder) -> None:
    """Merge all files of a step; a score written twice counts once, the last time."""
    folder = run.path / "evaluations"
    by_step: dict[int, Evaluation] = {}
    answers: dict[str, list[tuple[int, Path]]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = EVALUATION_NAME.fullmatch(file.name)
        if not match:
            continue
        step = int(match[1])
        evaluation = by_step.setdefault(step, Evaluation(step))
        if match[3] == "json":
            _add_scores(run, file, evaluation)
        else:
            answers.setdefault(match[2] or "", []).append((step, file))
    for files in answers.values():
        for step, file in sorted({min(files), max(files)}):
            for item in _records(run, file):
                key = str(item.get("task")), str(item.get("id")), str(item.get("metric"))
                by_step[step].items[key] = item
    run.evaluations = [by_step[step] for step in sorted(by_step) if by_step[step].scores]


def _add_scores(run: RunFolder, file: Path, evaluation: Evaluation) -> None:
    """Read one file of scores into ``evaluation``."""
    try:
        content = as_mapping(json.loads(_text(run, file) or ""))
        entries, data = content.get("scores"), str(content.get("data") or "")
        seen = as_number(content.get("samples_seen"))
    except (ValueError, RecursionError) as error:
        run.repairs.append(f"evaluations/{file.name} cannot be read and is left out ({_first_line(error)})")
        return
    evaluation.samples_seen = seen if math.isfinite(seen) else evaluation.samples_seen
    known = {(score.task, score.metric, score.group, score.data): score for score in evaluation.scores}
    for entry in entries if isinstance(entries, list) else []:
        entry = as_mapping(entry)
        task, metric = str(entry.get("task")), str(entry.get("metric"))
        group = str(entry.get("group") or "all")
        value, low, high = (as_number(entry.get(key)) for key in ("value", "low", "high"))
        count = as_number(entry.get("n"))
        n, higher = int(count) if math.isfinite(count) else 0, is_row_higher_better({**entry, "metric": metric})
        score = Score(task, metric, group, value, low, high, n, data, higher)
        known[task, metric, group, data] = score
    evaluation.scores = list(known.values())


def _first_line(error: Exception) -> str:
    """The first line of an error's text, for one-line notes."""
    return (str(error).splitlines() or [type(error).__name__])[0]
