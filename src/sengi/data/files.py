"""Find data files and read their rows: JSONL, JSON, CSV, Parquet, each also compressed."""

from __future__ import annotations

import difflib
import functools
import io
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sengi.data.bounded import COMPRESSIONS, LIMITS, Limits, open_bounded, open_regular, read_document
from sengi.data.hub import download, looks_like_hub_id
from sengi.data.readers import Row, csv_rows, json_rows, jsonl_rows, parquet_rows
from sengi.data.rows import printable, show
from sengi.errors import DataError

KINDS = (".jsonl", ".json", ".csv", ".parquet")
SUFFIXES = tuple(kind + compression for compression in (*COMPRESSIONS, "") for kind in KINDS)
# In the name of a file or of a folder above it
_HELD_OUT = re.compile(r"(^|[-_.])(test|validation|valid|val|dev|eval)([-_.]|$)", re.IGNORECASE)
# JSON that describes a dataset and is none: the Hub's and the `datasets` library's own files.
NOT_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


@functools.lru_cache(maxsize=4096)  # called for every row without a source
def split_suffix(path: str | Path) -> tuple[str, str, str]:
    """Return (stem, kind, compression) of a file name; kind is "" when the file is of no known kind.

    >>> split_suffix("data/train.jsonl.xz")
    ('train', '.jsonl', '.xz')
    """
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            kind = "." + suffix.split(".")[1]
            return name[: -len(suffix)], kind, suffix[len(kind) :]
    return name, "", ""


def find_files(path: str) -> list[Path]:
    """Return the data files that ``path`` names, in sorted order, and log the names of those left out.

    Args:
        path: a file, a folder (searched with its sub-folders) or the id of a dataset on the Hugging Face Hub.

    Raises:
        DataError: nothing is there, or nothing of a known kind.
    """
    files, skipped = list_files(path)
    if skipped:
        names = ", ".join(printable(file.name, 100) for file in skipped[:10])
        more = f" and {len(skipped) - 10} more" if len(skipped) > 10 else ""
        logging.getLogger("sengi.data").warning("%s: not data files, left out: %s%s", path, names, more)
    return files


def list_files(path: str) -> tuple[list[Path], list[Path]]:
    """Return the data files that ``path`` names, and the files beside them that are of no known kind.

    Args:
        path: see ``find_files``.

    Raises:
        DataError: see ``find_files``.
    """
    here = Path(os.path.expanduser(path))  # pathlib's ends with an error where it knows no such user
    if not path or "\0" in path:
        raise DataError(f"data path {show(path)}: names no file; give a file, a folder or a hub dataset id")
    if not os.path.exists(here):  # unlike pathlib's, it takes a name of any length
        if not looks_like_hub_id(path, split_suffix(path)[1]):
            raise DataError(_missing(here))
        here = download(path, SUFFIXES)
        _refuse_splits(path, _list_folder(here, path)[0], here)
    if not here.is_dir():
        if not split_suffix(here)[1]:
            raise DataError(
                f"{printable(path, 200)}: the name ends in none of {', '.join(KINDS)} "
                f"(plain or with {', '.join(COMPRESSIONS)}); rename or convert the file"
            )
        return [_writable_name(here)], []
    return _list_folder(here, path)


def _list_folder(folder: Path, name: str) -> tuple[list[Path], list[Path]]:
    files: list[Path] = []
    skipped: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(root)) in seen:  # a link to a folder that was searched, or around in a circle
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        for entry in names:
            known = split_suffix(entry)[1] and entry not in NOT_DATA and not entry.startswith(".")
            if known:
                files.append(_writable_name(Path(root, entry)))
            else:
                skipped.append(Path(root, entry))
    if not files:
        others = f" ({len(skipped)} others, such as {printable(str(skipped[0]), 100)})" if skipped else ""
        raise DataError(
            f"{printable(name, 200)}: the folder holds no {', '.join(KINDS)} file{others}; "
            "name the right folder or convert the files"
        )
    return sorted(files), sorted(skipped)


def _writable_name(path: Path) -> Path:
    """The path, if reports and stores, which are UTF-8, can name it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{printable(str(path), 200)}: the name is not UTF-8; rename the file") from None
    return path


def _refuse_splits(dataset: str, files: list[Path], folder: Path) -> None:
    """A dataset of the hub holds all its splits: those that scores are taken on must not be trained by mistake."""
    held = [file for file in files if any(_HELD_OUT.search(part) for part in file.relative_to(folder).parts)]
    if held and len(held) < len(files):
        rest = next(file for file in files if file not in held)
        raise DataError(
            f"{printable(dataset, 200)}: holds {len(held)} file(s) of other splits beside {len(files) - len(held)} "
            f"to train on, such as {printable(str(held[0].relative_to(folder)), 100)}; name the files you mean, for "
            f"example {printable(str(rest), 300)}"
        )


def _missing(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    wanted = path.relative_to(parent).parts[0] if parent != path else path.name
    try:
        near = difflib.get_close_matches(wanted, os.listdir(parent), n=1, cutoff=0.5)
    except OSError:
        near = []
    hint = f"; did you mean {printable(str(parent / near[0]), 200)}?" if near else "; check the path"
    return f"{printable(str(path), 200)}: no such file or folder, and no id of a hub dataset (org/name){hint}"


def read_rows(
    path: str | Path,
    *,
    limits: Limits = LIMITS,
    on_bytes: Callable[[int], None] | None = None,
    quick: Callable[[str, int], Any] | None = None,
    skip: int = 0,
) -> Iterator[Row]:
    """Yield (row number, row) of one data file; a row that cannot be read comes as a ``RowError``.

    Args:
        path: the file; its suffix says what it is.
        limits: bounds on lines and decompression.
        on_bytes: called with the bytes of the file read since the last call.
        quick: asked first for each line of JSONL and its number; what it makes is yielded in place of the row, None
            where the line has to be read with all checks.
        skip: leave out as many rows at the begin; they were read before, so they are not checked.

    Yields:
        The row's number from 1 (JSONL: the line number; CSV: records after the header) and its columns.

    Raises:
        DataError: the file is missing, empty, cut, not UTF-8 or over a limit; the message names file and line.
    """
    name = printable(str(path), 300)
    _, kind, compression = split_suffix(path)
    if not kind:
        raise DataError(f"{name}: the name ends in none of {', '.join(KINDS)}; rename or convert the file")
    if kind == ".parquet" and not compression:
        rows = parquet_rows(open_regular(Path(path), name), name, limits, on_bytes)
    else:
        rows = _stream_rows(Path(path), name, kind, compression, limits, on_bytes, quick, skip)
    if kind != ".jsonl":
        rows = itertools.islice(rows, skip, None)
    empty = not skip
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(f"{name}: the file holds no rows; check how it was written")


def _stream_rows(
    path: Path,
    name: str,
    kind: str,
    compression: str,
    limits: Limits,
    on_bytes: Callable[[int], None] | None,
    quick: Callable[[str, int], Any] | None,
    skip: int,
) -> Iterator[Row]:
    with open_bounded(path, name, compression, limits, on_bytes) as stream:
        if kind == ".jsonl":
            yield from jsonl_rows(stream, name, limits, quick, skip)
        elif kind == ".csv":
            yield from csv_rows(stream, name, limits)
        elif kind == ".json":
            yield from json_rows(read_document(stream, name, limits), name, limits)
        else:
            yield from parquet_rows(io.BytesIO(read_document(stream, name, limits)), name, limits, None)
