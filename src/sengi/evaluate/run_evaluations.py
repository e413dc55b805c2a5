"""The evaluations of a run folder: their names, how they are written, and the timeline that they make together.

    evaluations/step-<step>-<kind>.json            scores, the model and the data they belong to, samples seen
    evaluations/step-<step>-<kind>.items.jsonl     one line a question and metric

dynamics.jsonl keeps exactly one line a step and no scores: a score may come hours after its step (a second process,
``sengi eval RUN``), and a run with evaluations must leave the same dynamics as one without. Each evaluation says its
step and its ``samples_seen`` instead, the two x axes of dynamics.jsonl, and readers join them there.

Files are replaced atomically and belong to one evaluation each, so training and ``sengi eval RUN`` may write into the
same folder at the same time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sengi import storage
from sengi.errors import CheckpointError, InputError, StorageError
from sengi.evaluation import Evaluation
from sengi.statistics.metrics import is_row_higher_better

FOLDER = "evaluations"
CACHE = ".cache-"  # answers of an evaluation that is not finished
TASKS = "tasks"  # the kind of what a suite of tasks scored
RESULT_KEYS = ("task", "id", "metric", "correct", "correct_sum", "weight", "group", "topic", "source", "phase")
GROUP_KEYS = ("groups", "group_subtasks", "higher_is_better")  # of lm-eval's results: for groups and directions
_NAME = re.compile(r"step-(\d{1,12})-(tasks(?:-[0-9a-f]{8})?)\.json")


@dataclass(frozen=True)
class Point:
    """One score of one checkpoint.

    Attributes:
        step: optimizer steps taken before it, 0 for the base model.
        samples_seen: samples trained on before it.
        value: the score; ``low`` and ``high`` are the ends of its 95% interval, NaN where there is none.
        n: questions it rests on.
        higher_is_better: the score's direction.
    """

    step: int
    samples_seen: int
    value: float
    low: float
    high: float
    n: int
    higher_is_better: bool


def evaluation_name(step: int, kind: str) -> str:
    """File name of an evaluation, without suffix."""
    return f"step-{step:08d}-{kind}"


def write_evaluation(run: Path, step: int, kind: str, result: dict[str, Any], items: list[dict[str, Any]]) -> None:
    """Write scores and, where there are any, items; the scores come last, so that they are never without items.

    Raises:
        StorageError: the disk failed.
    """
    folder, name = run / FOLDER, evaluation_name(step, kind)
    storage.create_folder(folder)
    if items:
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        _replace(folder / f"{name}.items.jsonl", lines.encode())
    _replace(
        folder / f"{name}.json", (json.dumps({"step": step, **result}, indent=2, ensure_ascii=False) + "\n").encode()
    )


def _replace(path: Path, data: bytes) -> None:
    try:
        storage.write_file(path, data)
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        storage.write_file(path, data)  # a run that started just now took the temporary file for a left-over


def has_evaluation(run: Path, step: int, kind: str, data: str) -> bool:
    """Whether that evaluation is there already, on the same data (a fingerprint)."""
    return bool(read_evaluation(run, step, kind, data))


def read_evaluation(run: Path, step: int, kind: str, data: str) -> dict[str, Any]:
    """An evaluation on these data (a fingerprint), as it was written; empty where there is none."""
    content = _read(run / FOLDER / f"{evaluation_name(step, kind)}.json")
    return content if content.get("data") == data else {}


def write_tasks(run: Path, step: int, data: str, model: str, samples_seen: int, evaluation: Evaluation) -> None:
    """Write what a suite scored at a step, beside what other suites scored there.

    Args:
        run: the run folder.
        step: of the checkpoint.
        data: fingerprint of the suite.
        model: the folder that was scored.
        samples_seen: before this checkpoint.
        evaluation: its scores; numbers that are not finite become null, which JSON knows.

    Raises:
        StorageError: the disk failed.
    """
    facts = {
        "samples_seen": samples_seen,
        "model": model,
        "data": data,
        "seconds": evaluation.seconds,
        "scores": evaluation.scores,
        "excluded": evaluation.excluded,
        "notes": evaluation.notes,
        **{key: evaluation.results[key] for key in GROUP_KEYS if evaluation.results.get(key)},
    }
    write_evaluation(run, step, _kind_for(run, step, data), _finite(facts), _finite(evaluation.items))


def read_tasks(run: Path, data: str) -> dict[int, dict[str, Any]]:
    """All evaluations of one suite, by step; each as it was written, with its file's path under ``path``."""
    folder = run / FOLDER
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _NAME.fullmatch(path.name)
        if match and (content := _read(path)).get("data") == data:
            found[int(match[1])] = {**content, "path": path}
    return found


def read_results(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of an evaluation that :func:`read_tasks` returned, without their texts: runs have many of them."""
    path: Path = evaluation["path"]
    items = storage.read_lines(path.with_name(f"{path.stem}.items.jsonl"))
    return [{key: item[key] for key in RESULT_KEYS if key in item} for item in items]


def timelines(evaluations: dict[int, dict[str, Any]]) -> dict[tuple[str, str, str], list[Point]]:
    """Each score over the run: (task, metric, group) -> points by rising step."""
    lines: dict[tuple[str, str, str], list[Point]] = {}
    for step, evaluation in sorted(evaluations.items()):
        for row in evaluation["scores"]:
            value, low, high = (math.nan if row[key] is None else float(row[key]) for key in ("value", "low", "high"))
            seen, n = int(evaluation["samples_seen"]), int(row["n"])
            point = Point(step, seen, value, low, high, n, is_row_higher_better(row))
            lines.setdefault((row["task"], row["metric"], row["group"]), []).append(point)
    return lines


@contextlib.contextmanager
def unfinished(run: Path, step: int, data: str) -> Iterator[Path]:
    """The place for answers of an evaluation that is under way; what an interrupted one left is in it.

    It is removed when the body succeeds. Of two processes that score the same at once, the second has a file of
    its own.
    """
    folder = run / FOLDER / f"{CACHE}{evaluation_name(step, TASKS)}-{data[:16]}"
    with contextlib.ExitStack() as stack:
        storage.create_folder(folder)
        try:
            stack.enter_context(storage.lock(folder))
        except InputError:
            folder = folder.with_name(f"{folder.name}-{os.getpid()}")
            storage.create_folder(folder)
        yield folder / "answers"
        storage.remove(folder)


def checkpoint_samples(folder: Path) -> int:
    """Samples seen before a checkpoint, after every byte of it was held against its manifest.

    Raises:
        CheckpointError: it is incomplete or changed, or its manifest does not say.
    """
    manifest = storage.verify(folder)
    seen = manifest.get("samples_seen")
    if not isinstance(seen, int):
        raise CheckpointError(f"{folder}: its manifest does not say how many samples it saw; it is no run's checkpoint")
    return seen


def _kind_for(run: Path, step: int, data: str) -> str:
    """``tasks`` for the first suite of a step, ``tasks-<fingerprint>`` for others: none replaces another's scores."""
    first = run / FOLDER / f"{evaluation_name(step, TASKS)}.json"
    return TASKS if not first.exists() or _read(first).get("data") == data else f"{TASKS}-{data[:8]}"


def _read(path: Path) -> dict[str, Any]:
    """An evaluation file; empty where it is not there or not what this module writes: it is then made anew."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
