"""Token ids of texts, word by word: each word is given to the tokenizer once.

Text is mostly words that were seen before. Where a tokenizer is proven to treat what stands on both sides of a place
by itself, texts are cut there, and only words that are new go through the tokenizer. The ids are the same, for a
fraction of the work: cutting, looking up and joining are done by NumPy and Arrow for a whole batch.

Texts are cut between an ASCII letter or digit and an ASCII mark, space or new line, and between any of the printable
ones and a space. It is proven for byte-level BPE with one of the rules in `_RULES` or GPT-2's:

- Every character is matched by an alternative, and no match goes on over such a place: letters, digits and marks are
  matched in runs of their own kind, with at most one other character before them or new lines behind marks.
- What looks ahead (``\\s+(?!\\S)``) looks from white space, and what was cut off ends with something else.
- Unicode's normal forms do not reach over it: an ASCII character never combines with what stands before it.
- Added tokens are looked for before all that. None may depend on its neighbours, and texts are not cut before a
  character that follows a letter, digit or mark in one in the same way (``|`` and ``>`` in ``<|im_end|>``).
"""

from __future__ import annotations

import itertools
import json
import string
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, models

_MOST_WORDS = 1 << 18  # about 50 MB; then the memory of words begins anew
_MOST_TOKENS = 1 << 22
_SPACE, _MARK = 1, 2  # bits: what may follow
_CL100K = r"{}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]{}|\s+(?!\S)|\s+"
_RULES = frozenset(
    _CL100K.format(contractions, digits, lines)
    for contractions in ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")  # two spellings of one rule
    for digits in ("", "{1,3}")  # Qwen 2 and 3; Llama 3, GPT-4
    for lines in ("+", "")
)
_NORMAL_FORMS = frozenset({"NFC", "NFD", "NFKC", "NFKD"})


class WordMemo:
    """Ids of texts under one tokenizer.

    Args:
        backend: a tokenizer for which `can_cut` holds, without truncation and padding.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._before, self._after = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
        self._before[0x21:0x7F] = _SPACE
        self._before[[ord(c) for c in string.ascii_letters + string.digits]] |= _MARK
        self._after[[ord(c) for c in string.punctuation + "\n"]] = _MARK
        self._after[ord(" ")] = _SPACE
        for token in backend.get_added_tokens_decoder().values():
            for one, two in itertools.pairwise(token.content.encode()):
                if self._before[one] & self._after[two]:
                    self._after[two] = 0
        self._clear()

    def _clear(self) -> None:
        self._numbers: dict[str, int] = {}
        self._ids = np.empty(0, np.int32)
        self._ends = np.zeros(1, np.int64)  # word k has the ids from end k to end k + 1

    def encode(self, texts: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Encode texts without added special tokens.

        Args:
            texts: n texts.

        Returns:
            Ids of all, end to end, shape (T,), and the number of each text's, shape (n,).
        """
        if len(self._numbers) > _MOST_WORDS or len(self._ids) > _MOST_TOKENS:
            self._clear()
        words, texts_end = self._cut([text.encode() for text in texts])
        encoded = words.dictionary_encode()
        known = self._look_up(encoded.dictionary.to_pylist())
        numbers = known[np.frombuffer(encoded.indices.buffers()[1], np.int32)[: len(words)]]
        starts = self._ends[numbers]
        counts = self._ends[numbers + 1] - starts
        ends = np.concatenate(([0], np.cumsum(counts)))
        ids = self._ids[np.repeat(starts - ends[:-1], counts) + np.arange(ends[-1])]
        return ids, np.diff(ends[texts_end])

    def _cut(self, texts: list[bytes]) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
        """The words of all texts, and how many of them begin before each text and before the end, shape (n + 1,)."""
        # not pa.array(): where pandas is installed, that imports it
        data = b"".join(texts)
        borders = np.concatenate(([0], np.cumsum([len(text) for text in texts], dtype=np.int64)))
        raw = np.frombuffer(data, np.uint8)
        is_border = np.zeros(len(raw) + 1, np.bool_)
        np.not_equal(self._before[raw[:-1]] & self._after[raw[1:]], 0, out=is_border[1:-1])
        is_border[borders] = True
        places = np.flatnonzero(is_border)
        words = pa.LargeStringArray.from_buffers(len(places) - 1, pa.py_buffer(places), pa.py_buffer(data))
        return words, np.searchsorted(places, borders)

    def _look_up(self, words: list[str]) -> NDArray[np.int64]:
        """Numbers of different words; new ones are encoded first."""
        known = self._numbers
        new = [word for word in words if word not in known]
        if new:
            ids, counts = ids_of(self._backend.encode_batch_fast(new, add_special_tokens=False))
            known.update(zip(new, range(len(known), len(known) + len(new)), strict=True))
            self._ends = np.concatenate((self._ends, self._ends[-1] + np.cumsum(counts)))
            self._ids = np.concatenate((self._ids, ids))
        return np.fromiter(map(known.__getitem__, words), np.int64, count=len(words))


def ids_of(encodings: list[Encoding]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Ids of n encodings end to end, shape (T,), and the number of each one's, shape (n,)."""
    lists = [encoding.ids for encoding in encodings]
    counts = np.array([len(ids) for ids in lists], np.int64)
    return np.fromiter(itertools.chain.from_iterable(lists), np.int32, count=int(counts.sum())), counts


def can_cut(backend: Tokenizer) -> bool:
    """Whether the tokenizer is proven to treat words by themselves, as the head of this file says."""
    model = backend.model
    if not isinstance(model, models.BPE) or model.dropout:
        return False
    normalizer = _state(backend.normalizer)
    if normalizer is not None and normalizer["type"] not in _NORMAL_FORMS:
        return False
    steps = _state(backend.pre_tokenizer) or {"type": ""}
    if not _proven(steps.get("pretokenizers", [steps])):
        return False
    added = backend.get_added_tokens_decoder().values()
    return not any(token.lstrip or token.rstrip or token.single_word for token in added)


def _proven(steps: list[dict[str, Any]]) -> bool:
    """Whether the steps of a pre-tokenizer are: digits by themselves, a rule, bytes."""
    if steps[:1] and steps[0]["type"] == "Digits":
        steps = steps[1:]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False
    if steps[-1]["use_regex"]:  # GPT-2's rule
        return len(steps) == 1
    return (
        len(steps) == 2
        and steps[0]["type"] == "Split"
        and steps[0]["behavior"] == "Isolated"
        and not steps[0]["invert"]
        and steps[0]["pattern"].get("Regex") in _RULES
    )


def _state(component: Any) -> dict[str, Any] | None:
    """The settings of a part of a tokenizer, as in tokenizer.json."""
    return None if component is None else json.loads(component.__getstate__())
