"""Rows of the JSON files inside a tar archive, which are read in one pass and never written to disk."""

from __future__ import annotations

import functools
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from sengi.data.bounded import COMPRESSIONS, LIMITS, open_bounded
from sengi.data.files import split_suffix
from sengi.data.readers import Row, json_rows, jsonl_rows
from sengi.data.rows import printable
from sengi.errors import DataError

ARCHIVES = tuple(f".tar{compression}" for compression in ("", *COMPRESSIONS))


def is_archive(path: str | Path) -> bool:
    """Whether a file's name says that it is a tar archive.

    >>> is_archive("bbh.tar.xz")
    True
    """
    return Path(path).name.lower().endswith(ARCHIVES)


def archive_rows(path: Path, member: str) -> Iterator[Row]:
    """Yield (row number, row) of a JSON or JSONL file inside an archive.

    Args:
        path: the archive.
        member: the file's name inside it.

    Raises:
        DataError: the archive or the file cannot be read, or the file is not in it.
    """
    name = f"{printable(str(path), 300)} ({member})"
    data = _contents(path).get(member)
    if data is None:
        raise DataError(f"{name}: the archive has no file of this name; get the archive again")
    if split_suffix(member)[1] == ".jsonl":
        yield from jsonl_rows(io.BytesIO(data), name, LIMITS)
    else:
        yield from json_rows(data, name, LIMITS)


def archive_members(path: Path) -> list[str]:
    """Names of the JSON and JSONL files in an archive, in its order; empty where it holds none.

    Raises:
        DataError: it cannot be read.
    """
    return list(_contents(path))


def _contents(path: Path) -> dict[str, bytes]:
    try:
        return _read(str(path), os.stat(path).st_mtime_ns)
    except OSError as error:
        raise DataError(f"{printable(str(path), 300)}: cannot be read ({error.strerror}); check the path") from None


@functools.lru_cache(maxsize=4)
def _read(path: str, changed: int) -> dict[str, bytes]:
    del changed  # only a key: an archive that was written again is read again
    compression = "" if path.lower().endswith(".tar") else "." + path.lower().rpartition(".")[2]
    found: dict[str, bytes] = {}
    left = LIMITS.document_bytes
    try:
        with (
            open_bounded(Path(path), printable(path, 300), compression, LIMITS) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            for entry in archive:
                if entry.isfile() and split_suffix(entry.name)[1] in (".json", ".jsonl"):
                    left -= entry.size
                    if left < 0:
                        most = f"{LIMITS.document_bytes:,} bytes"
                        raise DataError(f"{printable(path, 300)}: holds more than {most}; unpack it yourself")
                    content = archive.extractfile(entry)
                    found[entry.name] = content.read() if content else b""
    except tarfile.TarError as error:
        raise DataError(f"{printable(path, 300)}: not a whole tar archive ({error}); get the file again") from None
    return found
