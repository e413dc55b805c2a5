"""Building a token store: data files in, a folder of arrays out.

Rows are read here, turned into tokens by `store_workers`, and written in row order by `store_write`. A store is built
beside its final place and renamed, so nothing half-built looks like a store. A build that was killed or interrupted
leaves that folder behind, and the next request for the same store goes on from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sengi.cache import cache_folder
from sengi.data.file_hash import file_hash
from sengi.data.files import find_files
from sengi.data.formats import read_conversations
from sengi.data.rows import NOTHING_TO_LEARN, RowError
from sengi.data.store import VERSION, StoreOptions, TokenStore
from sengi.data.store_workers import Row, blocks
from sengi.data.store_write import Progress as _Progress
from sengi.data.store_write import Writer as _Writer
from sengi.data.store_write import read_progress
from sengi.errors import DataError
from sengi.masks.batch import QuickMismatch
from sengi.recipe import DataEntry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sengi.masks.masker import Masker

Progress: TypeAlias = Callable[[int, float], None]
_log = logging.getLogger("sengi.data")


def open_store(
    entries: Sequence[DataEntry],
    tokenizer: PreTrainedTokenizerBase,
    options: StoreOptions,
    *,
    workers: int | None = None,
    today: date | None = None,
    progress: Progress | None = None,
) -> TokenStore:
    """The store of these entries: an existing one, or a new one built now.

    Args:
        entries: data entries of a recipe; weights do not matter here.
        tokenizer: with its chat template.
        options: length limit and what happens above it.
        workers: most processes to use, where more than this one pay; None allows one a core, at most 8.
        today: date for templates that print one; None takes today's.
        progress: called with the rows done so far and the share of the files that was read.

    Raises:
        DataError: a file or row cannot be read, or no row is left.
    """
    from sengi.masks.masker import Masker

    files = [(number, path) for number, entry in enumerate(entries) for path in find_files(entry.path)]
    quick = Masker(tokenizer, today=today)
    fingerprint = _fingerprint(entries, files, quick.fingerprint, options)
    target = cache_folder() / "tokens" / fingerprint[:32]
    building = target.with_name(f".tmp-{target.name}")
    try:
        with _claimed(building, target) as ours:
            if ours:
                done = read_progress(building) or _Progress()
                most = workers or min(8, os.cpu_count() or 1)

                def write(done: _Progress) -> None:
                    masker = quick if done.quick else Masker(tokenizer, today=today, quick=False)
                    masker.counts.update(done.repairs)
                    with contextlib.closing(_Writer(building, entries, files, options, done)) as writer:
                        _fill(writer, masker, tokenizer, most, progress)
                        writer.finish(fingerprint, str(masker.date or ""), masker.counts)

                if done.rows:
                    _log.info("%s: a build was stopped after %s rows; going on from there", building, f"{done.rows:,}")
                try:
                    write(done)
                except QuickMismatch as mismatch:
                    _log.warning("%s: this chat template has to be run for every row; starting again, slower", mismatch)
                    write(_Progress(quick=False))
                os.rename(building, target)
    except OSError as error:
        raise DataError(f"{building}: {error.strerror}; free space or set SENGI_CACHE to another disk") from error
    return TokenStore(target)


@contextlib.contextmanager
def _claimed(building: Path, target: Path) -> Iterator[bool]:
    """Let one process at a time build; False where there is a store already, or another process made it meanwhile.

    The lock is on the folder itself: it goes with the process that holds it, and with the folder. An error takes the
    folder away; what was killed or interrupted leaves it.
    """
    while not target.is_dir():
        building.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another process was done with it just now
            folder = os.open(building, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _lock(folder, building)
                if building.stat().st_ino == os.fstat(folder).st_ino:
                    if not target.is_dir():
                        break
                    building.rmdir()  # made just now, after another process had put its own in place
            except BaseException:
                os.close(folder)
                raise
            os.close(folder)
    else:
        yield False
        return
    try:
        yield True
    except Exception:
        shutil.rmtree(building, ignore_errors=True)
        raise
    finally:
        os.close(folder)


def _lock(folder: int, name: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("%s: another process is building this token store; waiting for it", name)
        fcntl.flock(folder, fcntl.LOCK_EX)


def _fill(
    writer: _Writer, masker: Masker, tokenizer: PreTrainedTokenizerBase, workers: int, progress: Progress | None
) -> None:
    """Read, tokenize and write all rows that are not done yet."""
    sizes = [path.stat().st_size for _, path in writer.files]
    size, read = sum(sizes), sum(sizes[: writer.progress.file])

    def count(more: int) -> None:
        nonlocal read
        read += more

    def share() -> float:
        return read / size if size else 1.0

    rows = _rows(writer.files, count, writer.progress.file, writer.progress.file_rows)
    with _no_cycle_search():
        for batch, block in blocks(rows, masker, tokenizer, workers, share):
            writer.add_batch(batch, block)
            writer.save_now_and_then(masker.counts)
            if progress is not None:
                progress(writer.progress.rows, share())


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
        "files": [[entry, entries[entry].phase, str(path), file_hash(path)] for entry, path in files],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _rows(
    files: Sequence[tuple[int, Path]], on_bytes: Callable[[int], None], first: int, skip: int
) -> Iterator[tuple[int, Row]]:
    """All rows from row ``skip`` of file ``first`` on, with the number of their file.

    One that cannot be read is an error: leaving it out would train on other data than was asked for.
    """
    for number, (_, path) in enumerate(files[first:], first):
        for row in read_conversations(path, on_bytes=on_bytes, skip=skip if number == first else 0):
            if isinstance(row, RowError) and row.reason not in NOTHING_TO_LEARN:
                raise row
            yield number, row
