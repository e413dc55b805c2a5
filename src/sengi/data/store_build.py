"""Building a token store: data files in, a folder of arrays out, by several processes.

The parent reads rows; workers render, tokenize and mask them in batches; the parent writes in row order. A store
is written beside its final place and renamed, so that a killed build leaves nothing that looks like a store.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sengi.data.conversation import Conversation, Sample
from sengi.data.files import find_files
from sengi.data.formats import read_conversations
from sengi.data.rows import NOTHING_TO_LEARN, RowError
from sengi.data.store import VERSION, StoreOptions, TokenStore, cache_folder
from sengi.errors import DataError, MaskError
from sengi.recipe import DataEntry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sengi.data.masks import Masker

BATCH = 1000  # rows a worker gets at a time
ALONE = 4  # batches the parent does itself before it pays for starting workers (1-2 s of a core each)

Row: TypeAlias = Conversation | RowError
Result: TypeAlias = Sample | MaskError | RowError
Batch: TypeAlias = list[tuple[int, Row]]  # (data entry, row)


def open_store(
    entries: Sequence[DataEntry],
    tokenizer_folder: Path,
    options: StoreOptions,
    *,
    workers: int | None = None,
    today: date | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> TokenStore:
    """The store of these entries: an existing one, or a new one built now.

    Args:
        entries: data entries of a recipe; weights do not matter here.
        tokenizer_folder: model folder with tokenizer and chat template.
        options: length limit and what happens above it.
        workers: processes; None takes one a core, at most 8.
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
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".tmp-{target.name}-{secrets.token_hex(4)}")
    building.mkdir()
    try:
        writer = _Writer(building, entries, files, options)
        size, done = sum(path.stat().st_size for _, path in files), 0

        def count(read: int) -> None:
            nonlocal done
            done += read

        rows = _rows(entries, files, count)
        for batch, results, counts in _tokenize(rows, masker, tokenizer, workers or min(8, os.cpu_count() or 1)):
            writer.repairs.update(counts)
            for (entry, row), result in zip(batch, results, strict=True):
                writer.add(entry, row, result)
            if progress is not None:
                progress(writer.rows, done / size if size else 1.0)
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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows(
    entries: Sequence[DataEntry], files: Sequence[tuple[int, Path]], on_bytes: Callable[[int], None]
) -> Iterator[tuple[int, Row]]:
    """All rows. One that cannot be read is an error: leaving it out would train on other data than was asked for."""
    for entry, path in files:
        for row in read_conversations(path, on_bytes=on_bytes):
            if isinstance(row, RowError) and row.reason not in NOTHING_TO_LEARN:
                raise row
            yield entry, row


def _tokenize(
    rows: Iterator[tuple[int, Row]], masker: Masker, tokenizer: PreTrainedTokenizerBase, workers: int
) -> Iterator[tuple[Batch, list[Result], Counter[str]]]:
    batches = iter(lambda: list(itertools.islice(rows, BATCH)), [])
    for batch in itertools.islice(batches, ALONE):
        yield batch, *_mask([row for _, row in batch], masker)
    waiting: deque[tuple[Batch, Future[tuple[list[Result], Counter[str]]]]] = deque()
    first = next(batches, None)
    if first is None:
        return
    # spawn: the parent has threads (tokenizers, torch) that a forked child would find in an unknown state
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer, masker.date)) as pool:
        try:
            started = [pool.submit(_work, []) for _ in range(workers)]
            for batch in itertools.chain([first], batches):
                if not any(future.done() for future in started):  # go on alone until they are up
                    yield batch, *_mask([row for _, row in batch], masker)
                    continue
                waiting.append((batch, pool.submit(_work, [row for _, row in batch])))
                if len(waiting) > 2 * workers:
                    done, future = waiting.popleft()
                    yield done, *future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, *future.result()
        except BrokenProcessPool:
            raise DataError(
                "a tokenizing process died: free memory and run again, or put the call in your script under "
                "if __name__ == '__main__':"
            ) from None


_worker: Masker | None = None


def _start_worker(tokenizer: PreTrainedTokenizerBase, today: date | None) -> None:
    """The tokenizer itself is sent: reading it from its folder would import most of transformers (8 s of a core)."""
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    from sengi.data.masks import Masker

    _worker = Masker(tokenizer, today=today)


def _work(batch: list[Row]) -> tuple[list[Result], Counter[str]]:
    assert _worker is not None
    return _mask(batch, _worker)


def _mask(batch: list[Row], masker: Masker) -> tuple[list[Result], Counter[str]]:
    """Samples of a batch and what the masker repaired in it; rows that are errors already stay what they are."""
    before = masker.counts.copy()
    done = iter(masker.samples([row for row in batch if isinstance(row, Conversation)]))
    results: list[Result] = [next(done) if isinstance(row, Conversation) else row for row in batch]
    return results, masker.counts - before


def _place(row: Row) -> str:
    """``file:row``; the message of a RowError begins with it."""
    return row.place if isinstance(row, Conversation) else f"{str(row).partition(f':{row.row}: ')[0]}:{row.row}"


@dataclass
class _Writer:
    """Writes samples in row order and counts what is dropped."""

    folder: Path
    entries: Sequence[DataEntry]
    files: Sequence[tuple[int, Path]]
    options: StoreOptions
    rows: int = 0
    lengths: list[int] = field(default_factory=list)
    columns: dict[str, list[int]] = field(default_factory=lambda: {"file": [], "row": [], "source": [], "phase": []})
    names: dict[str, dict[str, int]] = field(default_factory=lambda: {"file": {}, "source": {}, "phase": {}})
    entry_counts: list[int] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    first_drop: str = ""

    def __post_init__(self) -> None:
        self.entry_counts = [0] * len(self.entries)
        self._ids: IO[bytes] = (self.folder / "ids.bin").open("wb")
        self._mask: IO[bytes] = (self.folder / "mask.bin").open("wb")
        self._drops: IO[str] = (self.folder / "dropped.jsonl").open("w", encoding="utf-8")

    def add(self, entry: int, conversation: Row, result: Result) -> None:
        """Write a sample, or note why it is left out."""
        self.rows += 1
        if isinstance(conversation, RowError) or not isinstance(result, Sample):
            error = result if isinstance(result, MaskError | RowError) else conversation
            assert isinstance(error, MaskError | RowError)
            place = _place(conversation)
            self._drop(place, error.reason, str(error))
            return
        length, limit = len(result.input_ids), self.options.max_length
        if length > limit and self.options.overlong == "error":
            raise DataError(
                f"{conversation.place}: {length:,} tokens, max_length is {limit:,}; raise max_length, or set "
                "overlong to drop or truncate"
            )
        if length > limit and self.options.overlong == "drop":
            self._drop(conversation.place, "overlong", f"{length:,} tokens, max_length is {limit:,}")
            return
        if length > limit:
            self.truncated += 1
            self._note(
                conversation.place, "truncated", f"{length:,} tokens cut to {limit:,}; its closing token is lost"
            )
            result = Sample(result.input_ids[:limit], result.loss_mask[:limit])
        if result.num_supervised == 0:
            self._drop(conversation.place, "no_supervised_token", "no token of this sample would be trained")
            return
        self._keep(entry, conversation, result)

    def _keep(self, entry: int, conversation: Conversation, sample: Sample) -> None:
        self._ids.write(np.ascontiguousarray(sample.input_ids, np.int32).tobytes())
        self._mask.write(np.ascontiguousarray(sample.loss_mask, np.uint8).tobytes())
        self.lengths.append(len(sample.input_ids))
        self.columns["file"].append(self._number("file", conversation.file))
        self.columns["row"].append(conversation.row)
        self.columns["source"].append(self._number("source", conversation.source))
        self.columns["phase"].append(self._number("phase", self.entries[entry].phase or conversation.phase))
        self.entry_counts[entry] += 1

    def _number(self, column: str, name: str) -> int:
        return self.names[column].setdefault(name, len(self.names[column]))

    def _drop(self, place: str, reason: str, message: str) -> None:
        self.dropped[reason] += 1
        if not message.startswith(place):
            message = f"{place}: {message}"
        self.first_drop = self.first_drop or f"{message} ({reason})"
        self._note(place, reason, message)

    def _note(self, place: str, reason: str, message: str) -> None:
        line = {"place": place, "reason": reason, "message": message}
        self._drops.write(json.dumps(line, ensure_ascii=False) + "\n")

    def finish(self, fingerprint: str, template_date: str) -> None:
        """Write index and meta; refuse a store without samples."""
        if not self.lengths:
            if not self.rows:
                names = ", ".join(str(path) for _, path in self.files)
                raise DataError(f"{names}: no rows; check the path, or whether the file is empty")
            raise DataError(f"none of {self.rows:,} rows can be trained on; the first: {self.first_drop}")
        for file in (self._ids, self._mask, self._drops):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        arrays: dict[str, Any] = {
            f"{name}_of": np.array(values, np.int64 if name == "row" else np.int32)
            for name, values in self.columns.items()
        }
        offsets = np.concatenate([[0], np.cumsum(np.array(self.lengths, np.int64))])
        with (self.folder / "index.npz").open("wb") as index:
            np.savez(index, offsets=offsets, **arrays)
            index.flush()
            os.fsync(index.fileno())
        meta: dict[str, Any] = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "tokens": int(offsets[-1]),
            "rows": self.rows,
            "files": list(self.names["file"]),
            "sources": list(self.names["source"]),
            "phases": list(self.names["phase"]),
            "entry_counts": self.entry_counts,
            "dropped": dict(self.dropped),
            "truncated": self.truncated,
            "repairs": dict(self.repairs),
            "template_date": template_date,
        }
        (self.folder / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
