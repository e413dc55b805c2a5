"""Writing a token store: samples in row order, and a line for every row that is left out or cut."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sengi.data.conversation import Conversation, Sample
from sengi.data.mask_batch import Block
from sengi.data.rows import RowError
from sengi.data.store import VERSION, StoreOptions
from sengi.data.store_workers import Batch, Row
from sengi.errors import DataError, MaskError
from sengi.recipe import DataEntry


def _place(row: Row) -> str:
    """``file:row``; the message of a RowError begins with it."""
    return row.place if isinstance(row, Conversation) else f"{str(row).partition(f':{row.row}: ')[0]}:{row.row}"


@dataclass
class Writer:
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
        self._numbers: dict[tuple[int, str, str, str], list[int]] = {}  # of file, source and phase, by their names
        self._ids: IO[bytes] = (self.folder / "ids.bin").open("wb")
        self._mask: IO[bytes] = (self.folder / "mask.bin").open("wb")
        self._drops: IO[str] = (self.folder / "dropped.jsonl").open("w", encoding="utf-8")

    def add_batch(self, batch: Batch, block: Block) -> None:
        """Write the samples of a batch.

        Args:
            batch: rows with the number of their data entry.
            block: samples of those rows that are conversations.
        """
        conversations = [row for _, row in batch if isinstance(row, Conversation)]
        starts = np.cumsum(block.lengths) - block.lengths
        if len(conversations) == len(batch) and not block.errors and self._all_kept(block, starts):
            self.rows += len(batch)
            self._ids.write(block.ids.data)
            self._mask.write(block.mask.data)
            self.lengths += block.lengths.tolist()
            for (entry, _), conversation in zip(batch, conversations, strict=True):
                self._note_columns(entry, conversation)
            return
        results = iter(block.samples())
        for entry, row in batch:
            self.add(entry, row, row if isinstance(row, RowError) else next(results))

    def _all_kept(self, block: Block, starts: NDArray[np.int64]) -> bool:
        """Whether no sample is too long or without a supervised target."""
        if not len(starts) or block.lengths.max() > self.options.max_length:
            return False
        supervised = np.add.reduceat(block.mask, starts, dtype=np.int64) - block.mask[starts]
        return bool(supervised.all())

    def add(self, entry: int, conversation: Row, result: Sample | MaskError | RowError) -> None:
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
        self._note_columns(entry, conversation)

    def _note_columns(self, entry: int, conversation: Conversation) -> None:
        key = (entry, conversation.file, conversation.source, conversation.phase)
        if (numbers := self._numbers.get(key)) is None:
            names = (conversation.file, conversation.source, self.entries[entry].phase or conversation.phase)
            columns = (self.names[column] for column in ("file", "source", "phase"))
            numbers = [column.setdefault(name, len(column)) for column, name in zip(columns, names, strict=True)]
            self._numbers[key] = numbers
        self.columns["file"].append(numbers[0])
        self.columns["source"].append(numbers[1])
        self.columns["phase"].append(numbers[2])
        self.columns["row"].append(conversation.row)
        self.entry_counts[entry] += 1

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
