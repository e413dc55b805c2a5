"""Which local files stand for a data set of the Hugging Face Hub: ``adapters.yaml`` read and matched."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from sengi.data.archive import ARCHIVES
from sengi.data.files import SUFFIXES
from sengi.data.rows import printable
from sengi.errors import InputError

OTHER_SPLITS = "*"


class MissingDataError(InputError):
    """The files of a benchmark are not under the data root (or the Hub is out of reach)."""


@dataclass(frozen=True)
class Layout:
    """One known layout of rows.

    Attributes:
        has: columns by which the layout is known; none may be empty.
        columns: column of the hub -> Jinja expression over the row; empty: the row is taken as it is.
        valid: words of the error -> expression that must be true.
    """

    has: Sequence[str]
    columns: Mapping[str, str] = field(default_factory=dict)
    valid: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A data set of the hub and the local files that can stand for it; see the head of ``adapters.yaml``."""

    name: str
    hub: Sequence[str]
    splits: Mapping[str, Sequence[str]]
    rows: Sequence[Layout]
    names: Mapping[str, str] = field(default_factory=dict)
    by: str = ""
    rows_under: str = ""

    def find(self, root: Path, config: str | None, split: str) -> tuple[Path, str] | None:
        """Return (file, member of the archive or "") for a split, or None where no place has one.

        Args:
            root: the data root.
            config: the hub's configuration name, such as ``abstract_algebra``.
            split: such as ``test``.
        """
        for place in self._places(config, split):
            stem, _, member = place.partition(":")
            for suffix in ARCHIVES if member else SUFFIXES:
                if os.path.isfile(path := root / (stem + suffix)):
                    return path, member
        return None

    def looked(self, root: Path, config: str | None, split: str) -> str:
        """Return the places where a split was looked for, as words for an error message."""
        places = self._places(config, split)
        if not places:
            return f"nowhere, since the adapter {self.name} knows no split {split!r}"
        names = [place.partition(":")[0] + (".tar(.xz)" if ":" in place else ".jsonl(.xz)") for place in places]
        return printable(f"{root}/: {' or '.join(names)}", 400) + " or another known suffix"

    def _places(self, config: str | None, split: str) -> list[str]:
        known = self.splits.get(split, self.splits.get(OTHER_SPLITS, ()))
        short = self.names.get(config or "", config or "")
        return [place.format(config=config or "", name=short, split=split) for place in known]


@functools.cache
def load_adapters() -> dict[str, Adapter]:
    """Return the adapters by every hub id they serve, in small letters."""
    text = Path(__file__).with_name("adapters.yaml").read_text(encoding="utf-8")
    adapters: dict[str, Adapter] = {}
    for name, entry in yaml.safe_load(text).items():
        layouts = [Layout(**layout) for layout in entry.pop("rows")]
        adapter = Adapter(name=name, rows=layouts, **entry)
        adapters |= {hub.lower(): adapter for hub in adapter.hub}
    return adapters


def find_adapter(dataset_path: str | None) -> Adapter | None:
    """Return the adapter of a data set of the hub, None where there is none.

    Args:
        dataset_path: as lm-eval's task configuration has it, such as ``cais/mmlu``.
    """
    return load_adapters().get((dataset_path or "").strip().lower())
