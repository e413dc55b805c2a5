"""Writing a token store: samples in row order, and a line for every row that is left out or cut.

Everything goes to files at once, so memory does not grow with the rows. Now and then the files are flushed and
``progress.json`` says how much of each is certain: a build that was killed goes on from there.

    index.bin       a `RECORD` a sample, until `Writer.finish` makes index.npz of it
    progress.json   rows that are done, sizes of the files, names and counts
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sengi.conversation import Conversation, Sample
from sengi.data.rows import RowError
from sengi.data.store import VERSION, StoreOptions
from sengi.data.store_workers import Batch, Row
from sengi.errors import DataError, MaskError
from sengi.masks.batch import Block
from sengi.recipe import DataEntry
from sengi.storage import write_json

SAVE_SECONDS = 10.0  # at most about as much work is lost by a kill
RECORD = np.dtype([("length", "i8"), ("row", "i8"), ("file", "i4"), ("source", "i4"), ("phase", "i4")])
_FILES = ("ids.bin", "mask.bin", "index.bin", "dropped.jsonl")
_PROGRESS = "progress.json"


def _place(row: Row) -> str:
    """``file:row``; the message of a RowError begins with it."""
    return row.place if isinstance(row, Conversation) else f"{str(row).partition(f':{row.row}: ')[0]}:{row.row}"


@dataclass
class Progress:
    """What a build has done so far, as kept in ``progress.json``.

    Attributes:
        rows: rows done, dropped ones too.
        file: number of the file that the last of them is in.
        file_rows: rows done of that file.
        samples: samples written.
        sizes: certain bytes of each file.
        names: of files, sources and phases, by their number.
        entry_counts: samples of each data entry.
        dropped: rows left out, by reason.
        repairs: of the masks, by name.
        truncated: samples cut at ``max_length``.
        first_drop: message of the first row left out.
        quick: rows may be put together without running the template.
    """

    rows: int = 0
    file: int = 0
    file_rows: int = 0
    samples: int = 0
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_FILES, 0))
    names: dict[str, list[str]] = field(default_factory=lambda: {"file": [], "source": [], "phase": []})
    entry_counts: list[int] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    repairs: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    first_drop: str = ""
    quick: bool = True


def read_progress(folder: Path) -> Progress | None:
    """What a killed build left in its folder; None where that cannot be gone on from."""
    try:
        progress = Progress(**json.loads((folder / _PROGRESS).read_text(encoding="utf-8")))
        whole = all((folder / name).stat().st_size >= size for name, size in progress.sizes.items())
    except (OSError, ValueError, TypeError):
        return None
    return progress if whole and progress.sizes.keys() == set(_FILES) else None


class Writer:
    """Writes samples in row order and counts what is dropped.

    Args:
        folder: where the store is built.
        entries: data entries of the recipe.
        files: (number of the entry, path) of every data file.
        options: length limit and what happens above it.
        progress: goes on behind this.
    """

    def __init__(
        self,
        folder: Path,
        entries: Sequence[DataEntry],
        files: Sequence[tuple[int, Path]],
        options: StoreOptions,
        progress: Progress,
    ) -> None:
        self.folder, self.entries, self.files, self.options, self.progress = folder, entries, files, options, progress
        progress.entry_counts = progress.entry_counts or [0] * len(entries)
        self._names = {
            column: {name: number for number, name in enumerate(names)} for column, names in progress.names.items()
        }
        self._dropped = Counter(progress.dropped)
        self._numbers: dict[tuple[int, str, str, str], tuple[int, int, int]] = {}  # of file, source, phase, by name
        self._records: list[tuple[int, int, int, int, int]] = []
        self._open: dict[str, IO[bytes]] = {}
        for name, size in progress.sizes.items():
            self._open[name] = (folder / name).open("ab")
            os.truncate(folder / name, size)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Close the files; what was not saved is not certain."""
        for file in self._open.values():
            file.close()

    def save_now_and_then(self, repairs: Counter[str]) -> None:
        """Have all that was written so far on the disk, if the last time is `SAVE_SECONDS` ago."""
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save(repairs)

    def save(self, repairs: Counter[str]) -> None:
        """Have all that was written so far on the disk, then say so.

        Args:
            repairs: of the masks of all rows so far.
        """
        for name, file in self._open.items():
            file.flush()
            os.fsync(file.fileno())
            self.progress.sizes[name] = file.tell()
        self.progress.repairs, self.progress.dropped = dict(repairs), dict(self._dropped)
        self.progress.names = {column: list(names) for column, names in self._names.items()}
        write_json(self.folder / _PROGRESS, vars(self.progress))
        self._saved = time.monotonic()

    def add_batch(self, batch: Batch, block: Block) -> None:
        """Write the samples of a batch.

        Args:
            batch: rows with the number of their file.
            block: samples of those rows that are conversations.
        """
        conversations = [row for _, row in batch if isinstance(row, Conversation)]
        starts = np.cumsum(block.lengths) - block.lengths
        if len(conversations) == len(batch) and not block.errors and self._all_kept(block, starts):
            self._open["ids.bin"].write(block.ids.data)
            self._open["mask.bin"].write(block.mask.data)
            for (file, _), conversation, length in zip(batch, conversations, block.lengths.tolist(), strict=True):
                self._note_record(file, conversation, length)
        else:
            results = iter(block.samples())
            for file, row in batch:
                self.add(file, row, row if isinstance(row, RowError) else next(results))
        self._open["index.bin"].write(np.array(self._records, RECORD).data)
        self.progress.samples += len(self._records)
        self._records.clear()
        progress, last = self.progress, batch[-1][0]
        progress.rows += len(batch)
        progress.file_rows = sum(file == last for file, _ in batch) + (
            progress.file_rows if last == progress.file else 0
        )
        progress.file = last

    def _all_kept(self, block: Block, starts: NDArray[np.int64]) -> bool:
        """Whether no sample is too long or without a supervised target."""
        if not len(starts) or block.lengths.max() > self.options.max_length:
            return False
        supervised = np.add.reduceat(block.mask, starts, dtype=np.int64) - block.mask[starts]
        return bool(supervised.all())

    def add(self, file: int, conversation: Row, result: Sample | MaskError | RowError) -> None:
        """Write a sample, or note why it is left out."""
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
            self.progress.truncated += 1
            self._note(
                conversation.place, "truncated", f"{length:,} tokens cut to {limit:,}; its closing token is lost"
            )
            result = Sample(result.input_ids[:limit], result.loss_mask[:limit])
        if result.num_supervised == 0:
            self._drop(conversation.place, "no_supervised_token", "no token of this sample would be trained")
            return
        self._open["ids.bin"].write(np.ascontiguousarray(result.input_ids, np.int32).tobytes())
        self._open["mask.bin"].write(np.ascontiguousarray(result.loss_mask, np.uint8).tobytes())
        self._note_record(file, conversation, len(result.input_ids))

    def _note_record(self, file: int, row: Conversation, length: int) -> None:
        entry = self.files[file][0]
        key = (entry, row.file, row.source, row.phase)
        if (numbers := self._numbers.get(key)) is None:
            names = (row.file, row.source, self.entries[entry].phase or row.phase)
            one, two, three = (
                column.setdefault(name, len(column)) for column, name in zip(self._names.values(), names, strict=True)
            )
            numbers = self._numbers[key] = (one, two, three)
        self._records.append((length, row.row, *numbers))
        self.progress.entry_counts[entry] += 1

    def _drop(self, place: str, reason: str, message: str) -> None:
        self._dropped[reason] += 1
        if not message.startswith(place):
            message = f"{place}: {message}"
        self.progress.first_drop = self.progress.first_drop or f"{message} ({reason})"
        self._note(place, reason, message)

    def _note(self, place: str, reason: str, message: str) -> None:
        line = {"place": place, "reason": reason, "message": message}
        self._open["dropped.jsonl"].write((json.dumps(line, ensure_ascii=False) + "\n").encode())

    def finish(self, fingerprint: str, template_date: str, repairs: Counter[str]) -> None:
        """Write index and meta; refuse a store without samples."""
        progress = self.progress
        if not progress.samples:
            if not progress.rows:
                names = ", ".join(str(path) for _, path in self.files)
                raise DataError(f"{names}: no rows; check the path, or whether the file is empty")
            raise DataError(f"none of {progress.rows:,} rows can be trained on; the first: {progress.first_drop}")
        self.save(repairs)
        self.close()
        records = np.memmap(self.folder / "index.bin", RECORD, "r")
        offsets = np.concatenate([[0], np.cumsum(records["length"])])
        columns: dict[str, Any] = {f"{name}_of": records[name] for name in ("file", "row", "source", "phase")}
        with (self.folder / "index.npz").open("wb") as index:
            np.savez(index, offsets=offsets, **columns)
            index.flush()
            os.fsync(index.fileno())
        meta: dict[str, Any] = {
            "version": VERSION,
            "fingerprint": fingerprint,
            "tokens": int(offsets[-1]),
            "rows": progress.rows,
            "files": progress.names["file"],
            "sources": progress.names["source"],
            "phases": progress.names["phase"],
            "entry_counts": progress.entry_counts,
            "dropped": progress.dropped,
            "truncated": progress.truncated,
            "repairs": progress.repairs,
            "template_date": template_date,
        }
        write_json(self.folder / "meta.json", meta)
        for name in (_PROGRESS, "index.bin"):
            (self.folder / name).unlink()
