"""Find evaluation questions that stand in the training data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sengi.conversation import Conversation
from sengi.data.files import read_rows
from sengi.data.rows import RowError

NGRAM = 13  # words; the length that GPT-3's and later contamination studies use
COMMON = 10  # evaluation rows; what more of them share is a prompt's wording, not a question (GPT-3 does the same)
EXACT_WORDS = 4  # shortest text compared as a whole: "True" and "Paris" are no questions
LISTED = 20

UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]


@dataclass(slots=True)
class OverlapReport:
    """What one evaluation file shares with the training data.

    Attributes:
        file: the evaluation file.
        rows: its rows.
        found: its rows of which a text or 13 words in a row stand in the training data.
        training_rows: training rows that hold any of it.
        examples: up to 20 of ``{"train": place, "evaluation": place, "kind": "exact" or "13 words"}``.
    """

    file: str
    rows: int = 0
    found: int = 0
    training_rows: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TextBatch:
    """The texts of some training conversations, prepared once for all evaluation files.

    Attributes:
        places: ``file:row`` of each conversation.
        whole: (conversation, user message or document as lower-case words).
        hashes: uint64, of every run of 13 words of every message but system ones.
        owners: int64, the conversation of each hash.
    """

    places: list[str]
    whole: list[tuple[int, str]]
    hashes: UInt64s
    owners: Int64s

    @classmethod
    def of(cls, conversations: list[Conversation]) -> TextBatch:
        """Prepare a batch of conversations."""
        texts: list[str] = []
        owners: list[int] = []
        whole: list[tuple[int, str]] = []
        for index, conversation in enumerate(conversations):
            for role, text in _training_texts(conversation):
                texts.append(text)
                owners.append(index)
                if role == "user":
                    whole.append((index, _normal(text)))
        hashes, text_of = _grams(texts)
        places = [conversation.place for conversation in conversations]
        return cls(places, whole, hashes, np.array(owners, np.int64)[text_of])


class OverlapIndex:
    """The texts of one evaluation file, to stream training data over.

    Texts are compared as lower-case words between white space: whole (user messages and documents) and by
    every run of 13 words (all messages but system ones).

    Args:
        path: the evaluation file; every text in a row counts, whatever its columns are called.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = str(path)
        self.numbers: list[int] = []
        texts: list[str] = []
        owners: list[int] = []
        for number, row in read_rows(path):
            if isinstance(row, RowError):
                raise row
            leaves = set(_leaves(row))
            texts += leaves
            owners += [len(self.numbers)] * len(leaves)
            self.numbers.append(number)
        owner = np.array(owners, dtype=np.int64)
        self._exact = _exact_table(texts, owners)
        self._grams, self._gram_rows = _gram_table(*_grams(texts), owner)
        self._hit: set[int] = set()
        self._report = OverlapReport(self.file, len(self.numbers))

    def scan(self, batch: TextBatch) -> None:
        """Compare a batch of training conversations with the file."""
        hits: dict[int, tuple[int, str]] = {}  # conversation -> (evaluation row, kind)
        for index, normal in batch.whole:
            for row in self._exact.get(normal, ()):
                self._hit.add(row)
                hits.setdefault(index, (row, "exact"))
        hashes = batch.hashes
        first = np.searchsorted(self._grams, hashes, "left")
        last = np.searchsorted(self._grams, hashes, "right")
        for at in np.flatnonzero(last > first):
            rows = self._gram_rows[first[at] : last[at]].tolist()
            self._hit.update(rows)
            hits.setdefault(int(batch.owners[at]), (rows[0], f"{NGRAM} words"))
        self._report.training_rows += len(hits)
        for index in sorted(hits)[: LISTED - len(self._report.examples)]:
            row, kind = hits[index]
            place = f"{self.file}:{self.numbers[row]}"
            self._report.examples.append({"train": batch.places[index], "evaluation": place, "kind": kind})

    def report(self) -> OverlapReport:
        """Return what was found so far."""
        self._report.found = len(self._hit)
        return self._report


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _leaves(child)


def _training_texts(conversation: Conversation) -> Iterator[tuple[str, str]]:
    if conversation.kind == "text":
        yield "user", conversation.text
    for message in conversation.messages:
        if message["role"] not in ("system", "developer"):
            yield message["role"], message["content"]


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _exact_table(texts: list[str], owners: list[int]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for text, owner in zip(texts, owners, strict=True):
        normal = _normal(text)
        if normal.count(" ") + 1 >= EXACT_WORDS:
            table.setdefault(normal, []).append(owner)
    return {text: rows for text, rows in table.items() if len(rows) <= COMMON}


def _grams(texts: list[str]) -> tuple[UInt64s, Int64s]:
    """Return a 64-bit hash of every run of ``NGRAM`` words, and the index of the text it is in."""
    words = [text.lower().split() for text in texts]
    flat = np.fromiter((hash(word) for text in words for word in text), dtype=np.int64).view(np.uint64)
    runs = len(flat) - NGRAM + 1
    if runs <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    hashes = np.zeros(runs, np.uint64)
    for offset in range(NGRAM):  # a polynomial in an odd base, modulo 2**64, over Python's own word hashes
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + flat[offset : offset + runs]
    owner = np.repeat(np.arange(len(words)), [len(text) for text in words])
    inside = owner[:runs] == owner[NGRAM - 1 :]
    return hashes[inside], owner[:runs][inside]


def _gram_table(hashes: UInt64s, text_of: Int64s, owner: Int64s) -> tuple[UInt64s, Int64s]:
    """Return the hashes in sorted order and their evaluation rows, without what many rows share."""
    if not len(hashes):
        return hashes, text_of
    pairs = np.unique(np.stack([hashes, owner[text_of].astype(np.uint64)], axis=1), axis=0)
    _, count = np.unique(pairs[:, 0], return_counts=True)
    rare = np.repeat(count <= COMMON, count)
    return pairs[rare, 0], pairs[rare, 1].astype(np.int64)
