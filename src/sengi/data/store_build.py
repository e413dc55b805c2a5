"""Building a token store: data files in, a folder of arrays out.

Rows are read here, turned into tokens by `store_workers`, and written in row order. A store is written beside its final
place and renamed, so that a killed build leaves nothing that looks like a store.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sengi.data.files import find_files
from sengi.data.formats import read_conversations
from sengi.data.mask_batch import QuickMismatch
from sengi.data.rows import NOTHING_TO_LEARN, RowError
from sengi.data.store import VERSION, StoreOptions, TokenStore, cache_folder
from sengi.data.store_workers import Row, blocks
from sengi.data.store_write import Writer as _Writer
from sengi.errors import DataError
from sengi.recipe import DataEntry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sengi.data.masks import Masker

Progress: TypeAlias = Callable[[int, float], None]


def open_store(
    entries: Sequence[DataEntry],
    tokenizer_folder: Path,
    options: StoreOptions,
    *,
    workers: int | None = None,
    today: date | None = None,
    progress: Progress | None = None,
) -> TokenStore:
    """The store of these entries: an existing one, or a new one built now.

    Args:
        entries: data entries of a recipe; weights do not matter here.
        tokenizer_folder: model folder with tokenizer and chat template.
        options: length limit and what happens above it.
        workers: most processes to use, where more than this one pay; None allows one a core, at most 8.
        today: date for templates that print one; None takes today's.
        progress: called with the rows done so far and the share of the files that was read.

    Raises:
        DataError: a file or row cannot be read, or no row is left.
    """
    from sengi.data.masks import Masker
    from sengi.model.load import load_tokenizer

    files = [(number, path) for number, entry in enumerate(entries) for path in find_files(entry.path)]
    tokenizer = load_tokenizer(tokenizer_folder)
    masker = Masker(tokenizer, today=today)
    fingerprint = _fingerprint(entries, files, masker.fingerprint, options)
    target = cache_folder() / "tokens" / fingerprint[:32]
    if target.is_dir():
        return TokenStore(target)
    building = target.with_name(f".tmp-{target.name}-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir()
        most = workers or min(8, os.cpu_count() or 1)
        writer = _Writer(building, entries, files, options)
        try:
            _fill(writer, masker, tokenizer, most, progress)
        except QuickMismatch as mismatch:
            logging.getLogger("sengi.data").warning(
                "%s: this chat template has to be run for every row; starting again, slower", mismatch
            )
            shutil.rmtree(building)  # not written over: the first writer's files are still open
            building.mkdir()
            masker = Masker(tokenizer, today=today, quick=False)
            writer = _Writer(building, entries, files, options)
            _fill(writer, masker, tokenizer, most, progress)
        writer.finish(fingerprint, str(masker.date or ""))
        try:
            os.rename(building, target)
        except OSError:
            if not target.is_dir():  # else another process was first with the same store
                raise
    except OSError as error:
        raise DataError(f"{building}: {error.strerror}; free space or set SENGI_CACHE to another disk") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return TokenStore(target)


def _fill(
    writer: _Writer, masker: Masker, tokenizer: PreTrainedTokenizerBase, workers: int, progress: Progress | None
) -> None:
    """Read, tokenize and write all rows."""
    size, done = sum(path.stat().st_size for _, path in writer.files), 0

    def count(read: int) -> None:
        nonlocal done
        done += read

    def share() -> float:
        return done / size if size else 1.0

    rows = _rows(writer.entries, writer.files, count)
    with _no_cycle_search():
        for batch, block in blocks(rows, masker, tokenizer, workers, share):
            writer.add_batch(batch, block)
            if progress is not None:
                progress(writer.rows, share())
    writer.repairs = masker.counts


@contextlib.contextmanager
def _no_cycle_search() -> Iterator[None]:
    """Python's garbage collector is off inside: rows make no cycles, and looking through all objects of torch and
    transformers again and again took a third of the time that reading and masking short rows takes.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _fingerprint(
    entries: Sequence[DataEntry], files: Sequence[tuple[int, Path]], masker: str, options: StoreOptions
) -> str:
    parts = {
        "version": VERSION,
        "masker": masker,
        "options": [options.max_length, options.overlong],
        "files": [[entry, entries[entry].phase, str(path), _hash(path)] for entry, path in files],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def _rows(
    entries: Sequence[DataEntry], files: Sequence[tuple[int, Path]], on_bytes: Callable[[int], None]
) -> Iterator[tuple[int, Row]]:
    """All rows. One that cannot be read is an error: leaving it out would train on other data than was asked for."""
    for entry, path in files:
        for row in read_conversations(path, on_bytes=on_bytes):
            if isinstance(row, RowError) and row.reason not in NOTHING_TO_LEARN:
                raise row
            yield entry, row
