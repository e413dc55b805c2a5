"""Read what evaluations saved of single questions: lm-eval's samples files, and the items of our own runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sengi.data.bounded import LIMITS, open_bounded, read_document
from sengi.data.files import read_rows, split_suffix
from sengi.data.rows import RowError, printable, show
from sengi.errors import DataError
from sengi.evaluation import question_hashes
from sengi.statistics.metrics import is_higher_better, question_result

SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<time>[^_]+)")
ITEMS = re.compile(r"step-(?P<step>\d{1,12})(?:-[^/]*)?\.items")
LABELS = ("group", "topic", "source", "phase")  # columns by which our own items are told apart
WANTED = "a folder with samples_*.jsonl, one such file, a run folder, or an evaluations/step-*.items.jsonl"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a question was, by hashes: two evaluations are comparable where both are equal.

    Attributes:
        content: of the question with its right answer, as lm-eval hashes them.
        prompt: of the text that the model was shown; empty where it was not recorded.
    """

    content: str
    prompt: str


@dataclass(slots=True)
class TaskResults:
    """One task of one evaluation.

    Attributes:
        asked: what each question was, by id.
        metrics: by metric (with its filter where that is not lm-eval's ``none``) and question id: value and weight.
        labels: by question id: its columns of ``LABELS`` that are not empty.
        higher_is_better: by metric.
        left_out: metrics that cannot be compared by question.
        excluded: ids that this evaluation could not score.
    """

    asked: dict[str, Asked] = field(default_factory=dict)
    metrics: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    excluded: set[str] = field(default_factory=set)

    def add(self, metric: str, id_: str, value: float, weight: float, place: str) -> None:
        """Take one result.

        Raises:
            DataError: the question has a result of this metric already.
        """
        results = self.metrics.setdefault(metric, {})
        self.higher_is_better.setdefault(metric, is_higher_better(metric))
        if id_ in results:
            raise DataError(f"{place}: question {show(id_)} has {show(metric)} twice; evaluate again into a new folder")
        results[id_] = (value, weight)


@dataclass(slots=True)
class SavedSamples:
    """One evaluation, question by question.

    Attributes:
        path: where it was read from.
        files: the files.
        tasks: by name, in the order of the files.
        groups: tasks under each group that has a score of its own.
        group_scores: by group and metric: that score, to learn how the group is averaged.
        sources: of our own items, by task and metric: the file that holds them.
    """

    path: Path
    files: list[Path] = field(default_factory=list)
    tasks: dict[str, TaskResults] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    group_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    sources: dict[tuple[str, str], Path] = field(default_factory=dict)


def load_samples(path: Path) -> SavedSamples:
    """Read the saved answers of one evaluation.

    Args:
        path: a folder in lm-eval's layout (of each task the newest file) or its parent, one ``samples_*.jsonl``, a run
            folder (its last evaluation), or one ``step-*.items.jsonl`` of a run.

    Raises:
        DataError: nothing of that kind is there, or a file cannot be read; the message names file and row.
    """
    saved = SavedSamples(path)
    if path.is_file():
        saved.files = [path]
    elif path.is_dir():
        saved.files = _files_of(path)
    else:
        raise DataError(f"{printable(str(path), 300)}: no such file or folder; give {WANTED}")
    documents: dict[Path, dict[str, Any]] = {}
    for file in saved.files:
        stem = split_suffix(file)[0]
        if match := SAMPLES.fullmatch(stem):
            _read_samples(file, match["task"], saved)
            beside = file.with_name(f"results_{match['time']}.json")
        elif ITEMS.fullmatch(stem) or stem.endswith(".items"):
            _read_items(file, saved)
            beside = file.with_name(f"{stem.removesuffix('.items')}.json")
        else:
            raise DataError(f"{printable(str(file), 300)}: neither samples_*.jsonl nor *.items.jsonl; give {WANTED}")
        if beside not in documents:
            documents[beside] = _document(beside)
    for document in documents.values():
        _read_results(document, saved)
    return saved


def _files_of(folder: Path) -> list[Path]:
    """The files of the newest evaluation in a folder."""
    newest: dict[str, tuple[str, Path]] = {}
    for file in sorted(folder.iterdir()):
        stem, kind, _ = split_suffix(file)
        if kind == ".jsonl" and (match := SAMPLES.fullmatch(stem)):
            newest[match["task"]] = max(newest.get(match["task"], ("", file)), (match["time"], file))
    if newest:  # a task of which no question could be scored has a file without rows
        if not (files := [file for _, file in newest.values() if file.stat().st_size or not file.is_file()]):
            raise DataError(f"{printable(str(folder), 300)}: no question could be scored; its results_*.json says why")
        return files
    evaluations = folder if folder.name == "evaluations" else folder / "evaluations"
    found: dict[int, list[Path]] = {}
    for file in sorted(evaluations.glob("step-*.items.jsonl")):
        if match := ITEMS.fullmatch(split_suffix(file)[0]):
            found.setdefault(int(match["step"]), []).append(file)
    if found:
        return found[max(found)]
    inside = [child for child in sorted(folder.iterdir()) if child.is_dir() and any(child.glob("samples_*.jsonl*"))]
    name = printable(str(folder), 300)
    if len(inside) > 1:
        raise DataError(f"{name}: holds {len(inside)} evaluations ({', '.join(c.name for c in inside[:5])}); name one")
    if not inside:
        raise DataError(f"{name}: no saved answers in it; give {WANTED} (lm-eval writes samples with --log_samples)")
    return _files_of(inside[0])


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in read_rows(file):
        if isinstance(row, RowError):
            raise row
        yield f"{printable(str(file), 300)}:{number}", row


def _read_samples(file: Path, task: str, saved: SavedSamples) -> None:
    """lm-eval's own records: one a question and filter."""
    results = saved.tasks.setdefault(task, TaskResults())
    for place, row in _rows(file):
        hashes = [row.get(key) for key in ("doc_hash", "target_hash", "prompt_hash")]
        names = row.get("metrics")
        if "doc_id" not in row or not isinstance(names, list) or not all(isinstance(one, str) for one in hashes):
            raise DataError(
                f"{place}: not a sample as lm-eval writes it (doc_id, metrics, doc_hash, target_hash and prompt_hash "
                "are needed); old versions of it leave some out: evaluate again with a newer one"
            )
        id_, used = str(row["doc_id"]), str(row.get("filter", "none"))
        results.asked[id_] = Asked(f"{hashes[0]} {hashes[1]}", str(hashes[2]))
        results.labels[id_] = _labels(row)
        for name in map(str, names):
            found = question_result(name, row.get(name))
            if found is None:
                results.left_out.add(name)
                continue
            metric = found[0] if used == "none" else f"{found[0]},{used}"
            results.add(metric, id_, found[1], found[2] * _weight(row, place), place)


def _read_items(file: Path, saved: SavedSamples) -> None:
    """Our own items: one a question and metric, see :class:`sengi.evaluation.Evaluation`."""
    for place, row in _rows(file):
        task, id_, metric = (row.get(key) for key in ("task", "id", "metric"))
        if not isinstance(task, str) or not isinstance(metric, str) or id_ is None:
            raise DataError(f"{place}: not an item of an evaluation (task, id and metric are needed); check the file")
        results = saved.tasks.setdefault(task, TaskResults())
        name, _, named = metric.partition(",")
        used = str(row.get("filter", named or "none"))
        found = question_result(name, row.get("correct"))
        if found is None:
            results.left_out.add(metric)
            continue
        weight = _weight(row, place)
        label = found[0] if used == "none" else f"{found[0]},{used}"
        first = saved.sources.setdefault((task, label), file)
        if first != file:
            raise DataError(
                f"{printable(str(first), 300)} and {printable(file.name, 100)} both hold {show(label)} of "
                f"{show(task)}: two evaluations of one step; name the file to compare (the same tasks and settings "
                'have the same "data" in the .json beside it)'
            )
        results.asked[str(id_)] = Asked(" ".join(question_hashes(row)), str(row.get("prompt_hash") or ""))
        results.labels[str(id_)] = _labels(row)
        results.add(label, str(id_), found[1], weight * found[2], place)
        if metric == "accuracy" and (by_sum := question_result("accuracy_sum", row.get("correct_sum"))):
            results.add(*by_sum[:1], str(id_), *by_sum[1:], place)


def _weight(row: dict[str, Any], place: str) -> float:
    """What the question weighs in its score; lm-eval's own records have no such column."""
    weight = question_result("weight", row.get("weight", 1))
    if weight is None or weight[1] <= 0:
        raise DataError(f"{place}: weight: {show(row['weight'])}; a positive number is needed")
    return weight[1]


def _labels(row: dict[str, Any]) -> dict[str, str]:
    return {key: str(row[key]) for key in LABELS if row.get(key)}


def _document(file: Path) -> dict[str, Any]:
    """A file of results beside the samples; empty where there is none."""
    if not file.is_file():
        return {}
    name = printable(str(file), 300)
    with open_bounded(file, name, "", LIMITS) as stream:
        try:
            content = json.loads(read_document(stream, name, LIMITS))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: not JSON ({printable(str(error), 100)}); get the file again") from None
    return content if isinstance(content, dict) else {}


def _read_results(document: dict[str, Any], saved: SavedSamples) -> None:
    """Groups, directions and exclusions, where a file of results says them; entries of other kinds are passed over."""
    better = _mapping(document.get("higher_is_better"))
    for task, results in saved.tasks.items():
        for metric in results.metrics:
            said = _mapping(better.get(task)).get(metric.partition(",")[0])
            if isinstance(said, bool):
                results.higher_is_better[metric] = said
    for row in _entries(document, "scores", saved):
        if row.get("group") == "all":
            known = saved.tasks[row["task"]]
            bare = {metric.partition(",")[0].removeprefix("log ") for metric in known.metrics}
            known.left_out |= {str(row.get("metric")).partition(",")[0]} - bare
    for row in _entries(document, "excluded", saved) + _entries(_mapping(document.get("sengi")), "excluded", saved):
        saved.tasks[row["task"]].excluded.add(str(row.get("id")))
    parts = {str(k): [str(one) for one in v] for k, v in _mapping(document.get("group_subtasks")).items() if v}
    for group, scores in _mapping(document.get("groups")).items():
        if leaves := [task for task in leaves_of(group, parts) if task in saved.tasks]:
            saved.groups[group] = leaves
            saved.group_scores[group] = {
                key.removesuffix(",none"): float(value)
                for key, value in _mapping(scores).items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }


def _entries(document: dict[str, Any], key: str, saved: SavedSamples) -> list[dict[str, Any]]:
    rows = document.get(key)
    return [row for row in map(_mapping, rows if isinstance(rows, list) else []) if row.get("task") in saved.tasks]


def leaves_of(group: str, parts: Mapping[str, Sequence[str]], above: tuple[str, ...] = ()) -> list[str]:
    """Tasks under a group, through the groups in it, each once.

    Args:
        group: a group, or a task, which is its own leaf.
        parts: lm-eval's ``group_subtasks``: of each group the tasks and groups in it.
        above: the groups that it was reached through; a group inside itself has no leaves.
    """
    if group in above:
        return []
    if group not in parts:
        return [group]
    found = [leaf for part in parts[group] for leaf in leaves_of(part, parts, (*above, group))]
    return list(dict.fromkeys(found))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
