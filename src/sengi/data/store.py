"""The token store: every sample of a data set as token ids and loss mask, memory-mapped and shared by all runs.

A store is a folder named by a fingerprint of the data files (content, paths, phases), the tokenizer with its
template and the options that decide what is in it; the same request finds the same store and opens it at once.

    ids.bin      int32 (tokens,)     token ids of all samples, end to end
    mask.bin     uint8 (tokens,)     1 where the token is supervised
    index.npz    offsets (n+1,), file_of, row_of, source_of, phase_of (n,)
    dropped.jsonl                    one line a dropped or truncated row: place, reason, message
    meta.json                        counts, names, fingerprint
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sengi.conversation import Sample
from sengi.errors import DataError

VERSION = 1
_CHUNK = 4096  # samples
META = ("tokens", "fingerprint", "files", "sources", "phases", "entry_counts", "dropped", "truncated", "repairs")


@dataclass(frozen=True)
class StoreOptions:
    """What decides the content of a store beside data and tokenizer."""

    max_length: int
    overlong: str


class TokenStore:
    """An open store.

    Args:
        path: folder of the store.

    Raises:
        DataError: a file is missing or has the wrong size; the cure is to delete the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
            if missing := [key for key in META if key not in self.meta]:
                raise ValueError(f"meta.json has no {missing[0]}")
            tokens = int(self.meta["tokens"])
            for name, width in (("ids.bin", 4), ("mask.bin", 1)):
                size = (path / name).stat().st_size
                if size != tokens * width:
                    raise ValueError(f"{name} has {size:,} bytes instead of {tokens * width:,}")
            with np.load(path / "index.npz", allow_pickle=False) as index:
                self._index = {name: index[name] for name in ("offsets", "file_of", "row_of", "source_of", "phase_of")}
            offsets = self._index["offsets"]
            if offsets[-1] != tokens or {len(column) for column in self._index.values()} != {len(offsets), len(self)}:
                raise ValueError("index.npz does not fit the other files")
            self._ids = np.memmap(path / "ids.bin", np.int32, "r", shape=(tokens,)) if tokens else np.empty(0, np.int32)
            self._mask = (
                np.memmap(path / "mask.bin", np.uint8, "r", shape=(tokens,)) if tokens else np.empty(0, np.uint8)
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise DataError(
                f"{path}: the token store is damaged ({error}); delete this folder, it is rebuilt"
            ) from None

    def __len__(self) -> int:
        return len(self._index["offsets"]) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, int64 (n,)."""
        return np.diff(self._index["offsets"])

    @cached_property
    def supervised(self) -> NDArray[np.int64]:
        """Supervised targets of each sample, int64 (n,)."""
        offsets = self._index["offsets"]
        counts = np.empty(len(self), np.int64)
        # Not through the map, whose pages would all stay in memory; in parts, as NumPy widens what it sums to int64
        with (self.path / "mask.bin").open("rb") as file:
            for first in range(0, len(self), _CHUNK):
                starts = offsets[first : first + _CHUNK + 1]
                mask = np.fromfile(file, np.uint8, int(starts[-1] - starts[0]))
                begins = starts[:-1] - starts[0]
                counts[first : first + _CHUNK] = np.add.reduceat(mask, begins, dtype=np.int64) - mask[begins]
        return counts

    def sample(self, index: int) -> Sample:
        """Token ids and mask of one sample, copied out of the map."""
        a, b = self._index["offsets"][index], self._index["offsets"][index + 1]
        return Sample(np.array(self._ids[a:b]), np.array(self._mask[a:b]))

    def samples(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Sample]:
        """Several samples, in the order asked for."""
        return [self.sample(int(index)) for index in indices]

    def place(self, index: int) -> str:
        """``file:row`` of a sample, its id in ledgers and messages."""
        return f"{self.meta['files'][self._index['file_of'][index]]}:{self._index['row_of'][index]}"

    @property
    def file_of(self) -> NDArray[np.int32]:
        """Data file of each sample, an index of ``meta["files"]``, int32 (n,)."""
        return np.asarray(self._index["file_of"])

    @property
    def row_of(self) -> NDArray[np.int64]:
        """Row of each sample in its file, from 1, int64 (n,)."""
        return np.asarray(self._index["row_of"])

    @property
    def source_names(self) -> list[str]:
        """Names that :attr:`source_of` indexes."""
        return list(self.meta["sources"])

    @property
    def phase_names(self) -> list[str]:
        """Names that :attr:`phase_of` indexes."""
        return list(self.meta["phases"])

    @property
    def source_of(self) -> NDArray[np.int32]:
        """Source of each sample, int32 (n,)."""
        return np.asarray(self._index["source_of"])

    @property
    def phase_of(self) -> NDArray[np.int32]:
        """Phase of each sample, int32 (n,)."""
        return np.asarray(self._index["phase_of"])

    @property
    def entry_counts(self) -> list[int]:
        """Samples of each data entry of the recipe, in order."""
        return list(self.meta["entry_counts"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the content."""
        return str(self.meta["fingerprint"])

    def summary(self) -> dict[str, Any]:
        """Counts for plan and report: samples and tokens by source and phase, drops, length histogram."""
        edges = np.unique(np.concatenate([[1], 2 ** np.arange(3, 18), [int(self.lengths.max(initial=1)) + 1]]))
        edges = edges[edges <= int(self.lengths.max(initial=1)) + 1]
        return {
            "samples": len(self),
            "tokens": int(self.lengths.sum()),
            "supervised_tokens": int(self.supervised.sum()),
            "sources": self._by(self.source_of, self.source_names),
            "phases": self._by(self.phase_of, self.phase_names),
            "dropped": dict(self.meta["dropped"]),
            "truncated": int(self.meta["truncated"]),
            "repairs": dict(self.meta["repairs"]),
            "template_date": self.meta["template_date"],
            "length_histogram": {
                "edges": edges.tolist(),
                "counts": np.histogram(self.lengths, edges)[0].tolist() if len(edges) > 1 else [],
            },
        }

    def _by(self, group: NDArray[np.int32], names: Sequence[str]) -> dict[str, Mapping[str, int]]:
        return {
            name or "(none)": {
                "samples": int((group == number).sum()),
                "tokens": int(self.lengths[group == number].sum()),
                "supervised_tokens": int(self.supervised[group == number].sum()),
            }
            for number, name in enumerate(names)
        }
