"""What was answered or judged already: append-only lines, found by what was asked."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from sengi.storage import AppendLog, create_folder, read_lines, write_file


def key_of(*parts: Any) -> str:
    """SHA-256 of everything that decides an answer, as JSON.

    Args:
        parts: JSON values; the same parts, the same key.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_name(name: str) -> str:
    """A name as a file may be called; ``/`` becomes ``__``, as in lm-eval's folders.

    >>> file_name("meta-llama/Llama-3.3-70B-Instruct")
    'meta-llama__Llama-3.3-70B-Instruct'
    """
    safe = "".join(c if c.isalnum() or c in "-_.+@=" else "_" for c in name.strip().replace("/", "__"))
    return safe.lstrip(".")[:150] or "_"


class Cache:
    """Texts by key, in a file of lines; a line that a crash left half written is cut off.

    Args:
        path: the file; made if missing, with its folders.
    """

    def __init__(self, path: Path) -> None:
        create_folder(path.parent)
        self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in read_lines(path) if "key" in row}
        self._log = AppendLog(path)

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.rows[key]

    def add(self, key: str, **facts: Any) -> dict[str, Any]:
        """Keep the facts of a key, at once; returns the row with the time it came (``tstamp``, seconds)."""
        row = {"key": key, **facts, "tstamp": time.time()}
        self._log.append(row)
        self.rows[key] = row
        return row

    def close(self) -> None:
        """Flush to the device and close."""
        self._log.sync()
        self._log.close()


class RowFile:
    """One of FastChat's files of rows, to which other models' rows may belong too.

    Rows of ours are replaced, all others stay: FastChat's mean counts every row, so none may stand there twice.

    Args:
        path: the file; made if missing, with its folders.
        ours: keys of rows that are written again; a row's key is the values of ``columns``.
        columns: what names a row, for example ``("model", "question_id", "turn")``.
    """

    def __init__(self, path: Path, ours: set[tuple[Any, ...]], columns: tuple[str, ...]) -> None:
        create_folder(path.parent)
        rows = read_lines(path)
        others = [row for row in rows if tuple(row.get(column) for column in columns) not in ours]
        if len(others) < len(rows):
            write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in others).encode())
        self._log = AppendLog(path)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row at the end; it survives a killed process."""
        self._log.append(row)

    def close(self) -> None:
        """Flush to the device and close."""
        self._log.sync()
        self._log.close()
