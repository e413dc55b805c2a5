"""One column of the data files, for every sample of a token store.

A store keeps tokens, not rows. What a column says is read from the files once and kept in the store's folder; the
files cannot have changed since, because their content decides which store it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sengi.data.files import read_rows
from sengi.data.store import TokenStore
from sengi.storage import write_json

Value = str | int | float | None  # None: the row has no such column, or something else in it


def read_column(store: TokenStore, name: str) -> list[Value]:
    """What column ``name`` says of each sample, in the order of the store.

    Raises:
        DataError: a data file cannot be read.
    """
    kept = store.path / f"column-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    try:
        values: list[Value] = json.loads(kept.read_text(encoding="utf-8"))["values"]
        if len(values) == len(store):
            return values
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole: read the files
    values = _from_files(store, name)
    write_json(kept, {"column": name, "values": values})
    return values


def _from_files(store: TokenStore, name: str) -> list[Value]:
    files: Sequence[str] = store.meta["files"]
    places: list[dict[int, Value]] = [{} for _ in files]
    for file, row in zip(store.file_of.tolist(), store.row_of.tolist(), strict=True):
        places[file][row] = None
    for file, rows in zip(files, places, strict=True):
        for number, row in read_rows(file):
            if number in rows and isinstance(row, dict):
                rows[number] = _plain(row.get(name))
    return [places[file][row] for file, row in zip(store.file_of.tolist(), store.row_of.tolist(), strict=True)]


def _plain(value: Any) -> Value:
    """A text or a number as it is; anything else cannot name a phase or be compared."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    return None if isinstance(value, float) and value != value else value  # NaN: JSON has none
