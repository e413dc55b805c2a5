"""Find evaluation questions that stand in the training data."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sengi.conversation import Conversation
from sengi.data.archive import archive_members, archive_rows, is_archive
from sengi.data.files import read_rows
from sengi.data.readers import Row
from sengi.data.rows import RowError, printable
from sengi.errors import DataError

NGRAM = 13  # words; the length that GPT-3's and later contamination studies use
COMMON = 10  # evaluation rows, of all evaluations; what more share is a prompt's wording, no question (as in GPT-3)
EXACT_WORDS = 4  # shortest text compared as a whole: "True" and "Paris" are no questions
LISTED = 20

UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]


@dataclass(slots=True)
class OverlapReport:
    """What one evaluation shares with the training data.

    Attributes:
        evaluation: the evaluation file, or the name of a task.
        rows: its rows.
        found: its rows of which a text or 13 words in a row stand in the training data.
        training_rows: training rows that hold any of it.
        examples: up to 20 of ``{"train": place, "evaluation": place, "kind": "exact" or "13 words"}``.
        found_rows: number (or id) of each row that was found.
    """

    evaluation: str
    rows: int = 0
    found: int = 0
    training_rows: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)
    found_rows: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TextBatch:
    """The texts of some training conversations, prepared once for all evaluations.

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

    def only(self, texts: Container[str], hashes: UInt64s) -> TextBatch:
        """The part of a batch that is in ``texts`` and in the sorted ``hashes``."""
        whole = [(index, text) for index, text in self.whole if text in texts]
        if not len(hashes) or not len(self.hashes):
            return TextBatch(self.places, whole, self.hashes[:0], self.owners[:0])
        at = np.minimum(np.searchsorted(hashes, self.hashes), len(hashes) - 1)
        known = hashes[at] == self.hashes
        return TextBatch(self.places, whole, self.hashes[known], self.owners[known])


class Overlaps:
    """The texts of evaluations, to stream training data over.

    Args:
        indexes: one an evaluation.
    """

    def __init__(self, indexes: Sequence[OverlapIndex]) -> None:
        self._indexes = indexes
        # Most training text is in no evaluation at all: one look tells, however many evaluations there are.
        counts = Counter(itertools.chain.from_iterable(index.texts for index in indexes))
        self._texts = {text for text, count in counts.items() if count <= COMMON}
        hashes = np.concatenate([np.empty(0, np.uint64), *(index.hashes for index in indexes)])
        hashes, shared = np.unique(hashes, return_counts=True)
        self._hashes = hashes[shared <= COMMON]

    def scan(self, conversations: list[Conversation]) -> None:
        """Compare training conversations with all evaluations."""
        if not self._indexes:
            return
        batch = TextBatch.of(conversations).only(self._texts, self._hashes)
        if batch.whole or len(batch.hashes):
            for index in self._indexes:
                index.scan(batch)

    def reports(self) -> list[OverlapReport]:
        """Return what was found so far, in the order of the evaluations."""
        return [index.report() for index in self._indexes]


class OverlapIndex:
    """The texts of one evaluation.

    Texts are compared as lower-case words between white space: whole (user messages and documents) and by
    every run of 13 words (all messages but system ones).

    Args:
        name: of the evaluation.
        rows: (number or id, row); every text in a row counts, whatever its columns are called.
    """

    def __init__(self, name: str, rows: Iterable[tuple[str, Any]]) -> None:
        self.name = name
        self._labels: list[str] = []
        texts: list[str] = []
        owners: list[int] = []
        for label, row in rows:
            leaves = set(_leaves(row))
            texts += leaves
            owners += [len(self._labels)] * len(leaves)
            self._labels.append(label)
        owner = np.array(owners, dtype=np.int64)
        self._exact = _exact_table(texts, owners)
        self.hashes, self._hash_rows = _gram_table(*_grams(texts), owner)
        self._hit: set[int] = set()
        self._report = OverlapReport(name, len(self._labels))

    @classmethod
    def of_file(cls, path: Path) -> OverlapIndex:
        """The texts of an evaluation file, or of all JSON files in a tar archive.

        Raises:
            DataError: it cannot be read.
        """
        return cls(str(path), evaluation_rows(path))

    @property
    def texts(self) -> Iterator[str]:
        """Whole texts that training text is compared with, each once for every row that has it."""
        return (text for text, rows in self._exact.items() for _ in rows)

    def scan(self, batch: TextBatch) -> None:
        """Compare a batch of training conversations with the evaluation."""
        hits: dict[int, tuple[int, str]] = {}  # conversation -> (evaluation row, kind)
        for index, normal in batch.whole:
            for row in self._exact.get(normal, ()):
                self._hit.add(row)
                hits.setdefault(index, (row, "exact"))
        hashes = batch.hashes
        first = np.searchsorted(self.hashes, hashes, "left")
        last = np.searchsorted(self.hashes, hashes, "right")
        for at in np.flatnonzero(last > first):
            rows = self._hash_rows[first[at] : last[at]].tolist()
            self._hit.update(rows)
            hits.setdefault(int(batch.owners[at]), (rows[0], f"{NGRAM} words"))
        self._report.training_rows += len(hits)
        for index in sorted(hits)[: LISTED - len(self._report.examples)]:
            row, kind = hits[index]
            place = f"{self.name}:{self._labels[row]}"
            self._report.examples.append({"train": batch.places[index], "evaluation": place, "kind": kind})

    def report(self) -> OverlapReport:
        """Return what was found so far."""
        self._report.found = len(self._hit)
        self._report.found_rows = [self._labels[row] for row in sorted(self._hit)]
        return self._report


def evaluation_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (number, row) of an evaluation file; of a tar archive (member and number, row) of all its JSON files.

    A JSON document that holds its rows under a key, as those of BIG-Bench Hard do, is taken apart.

    Raises:
        DataError: it cannot be read.
    """
    if not is_archive(path):
        yield from _apart(read_rows(path), "")
        return
    if not (members := archive_members(path)):
        raise DataError(f"{printable(str(path), 300)}: the archive holds no .json or .jsonl file; unpack it yourself")
    for member in members:
        yield from _apart(archive_rows(path, member), f"{member}:")


def _apart(rows: Iterable[Row], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with their labels; the list of objects in a document that is one single object, in place of the document."""
    rows = iter(rows)
    head = list(itertools.islice(rows, 2))
    if len(head) == 1 and isinstance(head[0][1], dict) and "messages" not in (document := head[0][1]):
        lists = [value for value in document.values() if isinstance(value, list)]
        if len(lists) == 1 and len(lists[0]) > 1 and all(isinstance(row, dict) for row in lists[0]):
            head = list(enumerate(lists[0], 1))
    for number, row in itertools.chain(head, rows):
        if isinstance(row, RowError):
            raise row
        yield f"{prefix}{number}", row


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
    return table


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
    """Return the hashes in sorted order and their evaluation rows, each pair once."""
    if not len(hashes):
        return hashes, text_of
    pairs = np.unique(np.stack([hashes, owner[text_of].astype(np.uint64)], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1].astype(np.int64)
