"""Names of all lm-eval tasks, groups and tags, kept on disk: lm-eval parses 14,000 YAML files at every start (13 s)."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sengi.cache import cache_folder
from sengi.data.rows import printable
from sengi.errors import InputError
from sengi.harness.lm_eval_tasks import LM_EVAL_VERSION, Entry, Kind, TaskIndex, TaskManager
from sengi.harness.local_datasets import LocalTaskFactory

TASKS_FOLDER = Path(inspect.getfile(TaskManager)).parent
FORMAT = 1


class LocalTaskManager(TaskManager):
    """lm-eval's TaskManager over the kept index, with rows from a data root.

    Args:
        root: the data root; None: lm-eval downloads.
    """

    def __init__(self, root: Path | None) -> None:
        super().__init__(include_defaults=False)
        self._index = load_index()
        self._factory = LocalTaskFactory(root)

    @property
    def untrained_punkt(self) -> bool:
        """Whether IFEval will split sentences with a Punkt model that was trained on nothing."""
        return bool(self._factory.untrained_punkt)


def load_index() -> dict[str, Entry]:
    """Return lm-eval's index: every name with its kind, YAML file and members (of a tag)."""
    path = _cache_file()
    rows = _read_kept(path)
    if rows is None:
        rows = _rows(TaskIndex.build([TASKS_FOLDER]))
        _keep(path, rows)
    return {
        name: Entry(name, Kind[kind], TASKS_FOLDER / file if file else None, tags=set(tags))
        for name, (kind, file, tags) in rows.items()
    }


def check_names(names: Iterable[str], known: Iterable[str], elsewhere: Iterable[str] = ()) -> None:
    """Raise for the first name that nobody knows, with the nearest ones, those that are asked ``elsewhere`` too.

    Raises:
        InputError: the name is unknown.
    """
    known = list(known)
    among = set(known)
    for name in names:
        if name not in among:
            near = _nearest(name, [*elsewhere, *known])
            hint = f"did you mean {' or '.join(near)}?" if near else "see `lm_eval ls tasks` for all names"
            raise InputError(f"--tasks {printable(name, 100)}: lm-eval {LM_EVAL_VERSION} has no such task; {hint}")


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """Up to three known names that look like ``name``, the nearest first; capitals, dashes and so on do not count."""

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    by_plain: dict[str, str] = {}
    for one in known:
        by_plain.setdefault(plain(one), one)
    return [by_plain[one] for one in difflib.get_close_matches(plain(name), by_plain, n=3, cutoff=0.6)]


def _rows(index: dict[str, Entry]) -> dict[str, list[Any]]:
    """Name -> kind, YAML file below lm-eval's folder of tasks, members."""
    return {
        name: [
            entry.kind.name,
            str(entry.yaml_path.relative_to(TASKS_FOLDER)) if entry.yaml_path else None,
            sorted(entry.tags),
        ]
        for name, entry in index.items()
    }


def _cache_file() -> Path:
    return cache_folder() / f"lm-eval-{LM_EVAL_VERSION}-tasks.json"


def _stamp() -> list[Any]:
    """What must be equal for a kept index to be used: another installation or an edited one is read anew."""
    return [FORMAT, str(TASKS_FOLDER), os.stat(TASKS_FOLDER).st_mtime_ns]


def _read_kept(path: Path) -> dict[str, list[Any]] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dict(kept["names"]) if kept["stamp"] == _stamp() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, rows: dict[str, list[Any]]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"stamp": _stamp(), "names": rows}), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        logging.getLogger("sengi.harness").info("%s: the index of tasks is not kept (%s)", path, error)
