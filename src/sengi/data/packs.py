"""A pack: samples laid end to end in one padding-free row, with what the loss needs to know about them.

Shapes: T tokens, D documents (samples), S supervised targets, P tokens that all documents begin with.

A lean pack leaves out what cannot change the loss. Tokens behind the last position that predicts a target are seen by
no such position. A beginning that all documents share (a system prompt) is computed once, in front of them: tokens see
only what is before them, so hidden states, keys and values of these tokens are the same in every document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sengi.conversation import Sample

Int64s = NDArray[np.int64]
SHARED_PAYS = 0.02  # share of the tokens that a common beginning must save: repeating its keys costs about half of it


@dataclass(frozen=True)
class Pack:
    """One micro-batch.

    Attributes:
        input_ids: int64 (1, T).
        position_ids: int64 (1, T), from 0 in each document.
        bounds: int32 (D + 1,), first token of each document, and T. Of a lean pack those of what is left of the
            documents that have targets, after the shared beginning if there is one.
        longest: tokens of the longest document.
        predict_at: int64 (S,), positions whose *next* token is a supervised target.
        targets: int64 (S,), those next tokens.
        document: int64 (S,), the document each target belongs to. The first token of a document is never a
            target: nothing before it could predict it.
        counts: int64 (D,), supervised targets of each document.
        shared: P; 0 where every document is whole.
        keys: int64, for each token of each document laid out whole its place in the row; None where ``shared`` is 0.
        key_bounds: int32, the bounds of that layout; those of the row where ``shared`` is 0.
    """

    input_ids: Tensor
    position_ids: Tensor
    bounds: Tensor
    longest: int
    predict_at: Tensor
    targets: Tensor
    document: Tensor
    counts: Tensor
    key_bounds: Tensor
    shared: int = 0
    keys: Tensor | None = None

    @property
    def squared_lengths(self) -> Tensor:
        """Squares of the documents' lengths, summed: what attention costs, of a shared beginning once; int64 scalar.

        A token with p before it adds (p + 1)^2 - p^2.
        """
        return (2 * self.position_ids + 1).sum()

    def to(self, device: torch.device) -> Pack:
        """The same pack on ``device``."""
        moved: dict[str, Any] = {
            name: to_device(value, device) if isinstance(value, Tensor) else value
            for name, value in self.__dict__.items()
        }
        return Pack(**moved)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``, without waiting for what a GPU has to do: that takes page-locked memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def make_pack(samples: Sequence[Sample], lean: bool = False) -> Pack:
    """Lay ``samples`` end to end. An empty sequence gives a pack of two tokens without any target: a rank that
    has nothing to do in a micro-step must still take part in its collectives.

    Args:
        samples: the documents.
        lean: leave out what cannot change the loss; hidden states are then those of fewer tokens.
    """
    if not samples:
        samples = [Sample(np.zeros(2, np.int32), np.zeros(2, np.uint8))]
    ids = [sample.input_ids.astype(np.int64) for sample in samples]
    places = [np.flatnonzero(sample.loss_mask[1:]) + 1 for sample in samples]  # of the targets in their document
    counts = np.array([len(place) for place in places], dtype=np.int64)
    targets = np.concatenate([own[place] for own, place in zip(ids, places, strict=True)])
    shared = 0
    if lean and counts.any():
        ids = [own[: place[-1]] for own, place in zip(ids, places, strict=True) if len(place)]
        places = [place for place in places if len(place)]
        shared = _shared_beginning(ids, int(min(place[0] for place in places)) - 1)
    lengths = np.array([len(own) for own in ids], dtype=np.int64)
    ends = shared + np.cumsum(lengths - shared)
    starts = ends - lengths + shared  # where each document goes on behind the shared beginning
    keys, key_bounds = _keys(shared, starts, lengths)
    return Pack(
        input_ids=torch.from_numpy(np.concatenate([ids[0][:shared], *(own[shared:] for own in ids)]))[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(shared), *(np.arange(shared, n) for n in lengths)]))[
            None
        ],
        bounds=_int32([0, *ends] if shared == 0 else [0, shared, *ends]),
        longest=int(lengths.max()),
        predict_at=torch.from_numpy(
            np.concatenate([place - 1 + start - shared for place, start in zip(places, starts, strict=True)])
        ),
        targets=torch.from_numpy(targets),
        document=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        counts=torch.from_numpy(counts),
        key_bounds=key_bounds,
        shared=shared,
        keys=keys,
    )


def computed_work(samples: Sequence[Sample]) -> tuple[int, int]:
    """Tokens of a lean pack of these samples, which go through the layers, and :attr:`Pack.squared_lengths`."""
    pack = make_pack(samples, lean=True)
    return pack.input_ids.numel(), int(pack.squared_lengths)


def _shared_beginning(documents: Sequence[Int64s], most: int) -> int:
    """Tokens that all documents begin with, at most ``most``; 0 where sharing them does not pay."""
    if len(documents) < 2 or most < 1:
        return 0
    beginnings = np.stack([ids[:most] for ids in documents])
    alike = (beginnings == beginnings[0]).all(axis=0)
    shared = most if alike.all() else int(alike.argmin())
    saved = shared * (len(documents) - 1)
    return shared if saved >= SHARED_PAYS * sum(map(len, documents)) else 0


def _keys(shared: int, starts: Int64s, lengths: Int64s) -> tuple[Tensor | None, Tensor]:
    """Places and bounds of the keys: the shared beginning, then every document whole."""
    if shared == 0:
        return None, _int32([0, *np.cumsum(lengths)])
    beginning = np.arange(shared)
    parts = [np.concatenate([beginning, np.arange(a, a + n)]) for a, n in zip(starts, lengths - shared, strict=True)]
    return torch.from_numpy(np.concatenate([beginning, *parts])), _int32([0, *np.cumsum([shared, *lengths])])


def _int32(values: Sequence[Any]) -> Tensor:
    return torch.tensor([int(value) for value in values], dtype=torch.int32)
