"""Evaluation questions that stand in the training data: a score on them says what was seen, not what was learned."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sengi.cache import cache_folder
from sengi.conversation import Conversation
from sengi.data.file_hash import file_hash
from sengi.data.files import find_files
from sengi.data.formats import read_conversations
from sengi.data.overlap import OverlapIndex, OverlapReport, Overlaps
from sengi.errors import DataError, StorageError
from sengi.evaluate.suite import Suite
from sengi.mt_bench.files import QUESTIONS
from sengi.recipe import Recipe
from sengi.storage import create_folder, write_json

FILE = "contamination.json"  # in a run folder
VERSION = 2  # of what is kept; another rule of comparison is another version
BATCH = 1000  # conversations compared at a time
NAMED = 4  # evaluations named in a note

Progress = Callable[[float], None]


def find_contamination(
    recipe: Recipe, suite: Suite | None, data: str, *, own: bool = False, progress: Progress | None = None
) -> list[OverlapReport]:
    """Compare the training data of a recipe with evaluations, by the rule of :mod:`sengi.data.overlap`.

    Everything is read once; what came out is kept in the cache until a file changes.

    Args:
        recipe: its ``data`` is what is trained on.
        suite: tasks, files and MT-Bench questions; None: none.
        data: fingerprint of the suite; empty without one.
        own: with the recipe's ``eval_data`` and ``eval_questions``.
        progress: called with the share of the training data that was read.

    Returns:
        One report an evaluation file or benchmark task.

    Raises:
        SengiError: a file or a task cannot be read.
    """
    files: list[Path] = []
    if own:
        files += [path for entry in recipe.eval_data for path in find_files(entry.path)]
        files += [Path(name) for name in recipe.eval_questions]
    if suite is not None:
        files += [*suite.files("questions"), *suite.files("heldout")]
        files += [suite.mt_bench.data.expanduser() / QUESTIONS] if suite.mt_bench is not None else []
    benchmarks = suite is not None and bool(suite.benchmarks)
    if not files and not benchmarks:
        return []
    training = [path for entry in recipe.data for path in find_files(entry.path)]
    files = list(dict.fromkeys(files))
    known = cache_folder() / "contamination" / f"{_key(training, files, data)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return [OverlapReport(**entry) for entry in json.loads(known.read_text(encoding="utf-8"))]
    indexes = [OverlapIndex.of_file(path) for path in files]
    indexes += _benchmark_indexes(suite) if suite is not None and benchmarks else []
    reports = _compare(training, Overlaps(indexes), progress)
    with contextlib.suppress(StorageError):  # a full or read-only cache only costs time
        create_folder(known.parent)
        write_json(known, [dataclasses.asdict(report) for report in reports])
    return reports


def contamination_note(reports: Sequence[OverlapReport]) -> str:
    """What a reader of the scores must know, in one sentence; empty where nothing was found."""
    found = [report for report in reports if report.found]
    if not found:
        return ""
    total, rows = sum(report.found for report in found), sum(report.rows for report in reports)
    named = [f"{report.evaluation} {report.found:,} of {report.rows:,}" for report in found[:NAMED]]
    named += [f"{len(found) - NAMED:,} more"] if len(found) > NAMED else []
    first = found[0].examples[0]
    return (
        f"{total:,} of {rows:,} evaluation questions stand in the training data ({', '.join(named)}; the first: "
        f"{first['train']} as {first['evaluation']}): their scores can be too good"
    )


def write_contamination(run: Path, reports: Sequence[OverlapReport]) -> None:
    """Keep what was found in ``contamination.json`` of a run, beside what was kept of other evaluations.

    Raises:
        StorageError: the disk failed.
    """
    file = run / FILE
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        kept = dict(json.loads(file.read_text(encoding="utf-8")))
    for report in reports:
        entry = dataclasses.asdict(report)
        kept[entry.pop("evaluation")] = entry
    write_json(file, kept)


def _compare(training: Sequence[Path], overlaps: Overlaps, progress: Progress | None) -> list[OverlapReport]:
    total, read = sum(path.stat().st_size for path in training) or 1, 0

    def on_bytes(count: int) -> None:
        nonlocal read
        read += count

    batch: list[Conversation] = []
    for path in training:
        for row in read_conversations(path, on_bytes=on_bytes):
            if isinstance(row, Conversation):  # others are not trained on
                batch.append(row)
            if len(batch) == BATCH:
                overlaps.scan(batch)
                batch = []
                if progress is not None:
                    progress(read / total)
    overlaps.scan(batch)
    return overlaps.reports()


def _benchmark_indexes(suite: Suite) -> Iterator[OverlapIndex]:
    """The questions of lm-eval's tasks that are asked, whole rows of their data sets."""
    from sengi.harness.tasks import load_tasks

    loaded = load_tasks(suite.benchmarks, suite.data_root, num_fewshot=suite.num_fewshot)
    for name, task in loaded.tasks.items():
        questions = list(task.eval_docs)[: suite.limit]
        yield OverlapIndex(name, ((str(number), question) for number, question in enumerate(questions)))


def _key(training: Sequence[Path], files: Sequence[Path], data: str) -> str:
    """Names, because reports hold them, and contents of everything that is compared."""
    missing = [path for path in (*training, *files) if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: is gone, so it cannot be compared with the evaluation; check the path")
    facts = [[str(path), file_hash(path)] for path in (*training, *files)]
    return hashlib.sha256(json.dumps([VERSION, len(training), facts, data]).encode()).hexdigest()[:32]
