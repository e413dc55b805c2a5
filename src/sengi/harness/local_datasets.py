"""lm-eval's own task configurations over local rows: a task factory that swaps the download, nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from sengi.data.rows import printable
from sengi.errors import DataError
from sengi.harness.adapters import Adapter, MissingDataError, find_adapter
from sengi.harness.lm_eval_tasks import Entry, TaskFactory, datasets
from sengi.harness.local_rows import hub_rows
from sengi.harness.requirements import prepare_punkt


class LocalSplits(datasets.DatasetDict):
    """Splits of one benchmark; one without a file is empty, so that tasks without few-shot examples still load.

    Attributes:
        absent: split -> the places where it was looked for.
    """

    def __init__(self, adapter: Adapter, root: Path, config: str | None) -> None:
        super().__init__()
        self.absent: dict[str, str] = {}
        self.files: list[Path] = []
        self._adapter, self._root, self._config = adapter, root, config

    def __missing__(self, split: str) -> datasets.Dataset:
        found = self._adapter.find(self._root, self._config, split)
        if found is None:
            self.absent[split] = self._adapter.looked(self._root, self._config, split)
            # With the columns of another split: processing functions address them even without rows.
            self[split] = next(iter(self.values())).select([])
            return self[split]
        rows = hub_rows(self._adapter, *found, self._config)
        try:
            self[split] = datasets.Dataset.from_list(rows)
        except pa.ArrowException as error:
            raise DataError(f"{printable(str(found[0]), 300)}: a column changes its type ({error})") from None
        self.files.append(found[0])
        return self[split]


class LocalDataset:
    """Called by lm-eval in place of the download (its configuration key ``custom_dataset``).

    Args:
        adapter: which files.
        root: the data root.
        config: the hub's configuration name.
        split: the split with the questions; without it there is nothing to ask.
        task: for messages.
    """

    def __init__(self, adapter: Adapter, root: Path, config: str | None, split: str, task: str) -> None:
        self._adapter, self._root, self._config, self._split, self._task = adapter, root, config, split, task

    def __call__(self, **_: Any) -> LocalSplits:
        """Return the splits; the questions are read at once, the others when asked for.

        Raises:
            MissingDataError: there is no file with the questions.
            DataError: a file or row cannot be used.
        """
        splits = LocalSplits(self._adapter, self._root, self._config)
        if self._adapter.find(self._root, self._config, self._split) is None:
            looked = self._adapter.looked(self._root, self._config, self._split)
            raise MissingDataError(f"task {self._task}: its file of questions is missing; looked for in {looked}")
        splits[self._split]
        return splits

    def __repr__(self) -> str:
        """Return what stands in the results' copy of the configuration."""
        return f"local files of {self._adapter.name} under {self._root}"


class LocalTaskFactory(TaskFactory):
    """Builds lm-eval's tasks with rows from a data root.

    Args:
        root: the data root; None leaves lm-eval's downloads as they are.

    Attributes:
        untrained_punkt: an IFEval task was built and its Punkt model is the untrained one.
    """

    def __init__(self, root: Path | None) -> None:
        super().__init__()
        self._root = root
        self.untrained_punkt = False

    def _load_full_config(self, entry: Entry, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        if entry.yaml_path is not None and "ifeval" in entry.yaml_path.parts:
            self.untrained_punkt = prepare_punkt(self._root)
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        if self._root is None or "group" in config or config.get("custom_dataset"):
            return config
        adapter = find_adapter(config.get("dataset_path"))
        if adapter is None:
            raise MissingDataError(
                f"task {entry.name}: no adapter for its data set {config.get('dataset_path')!r}; "
                "leave --data-root out to download it"
            )
        split = config.get("test_split") or config.get("validation_split") or "test"
        config["custom_dataset"] = LocalDataset(adapter, self._root, config.get("dataset_name"), split, entry.name)
        if config.get("process_docs"):
            config["process_docs"] = _once(config["process_docs"])
        return config


def _once(process_docs: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``process_docs`` that works once a data set: lm-eval calls it at every look at the questions.

    The `datasets` library caches such work for downloaded files only. Without a cache GPQA's choices would be
    shuffled anew between asking and scoring.
    """
    done: dict[int, tuple[Any, Any]] = {}

    @functools.wraps(process_docs)
    def processed(dataset: Any) -> Any:
        if id(dataset) not in done:
            done[id(dataset)] = (dataset, process_docs(dataset))  # kept, so that its id stays its own
        return done[id(dataset)][1]

    return processed
