"""A pack: samples laid end to end in one padding-free row, with what the loss needs to know about them.

Shapes: T tokens, D documents (samples), S supervised targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sengi.data.conversation import Sample


@dataclass(frozen=True)
class Pack:
    """One micro-batch.

    Attributes:
        input_ids: int64 (1, T).
        position_ids: int64 (1, T), from 0 in each document.
        bounds: int32 (D + 1,), first token of each document, and T.
        longest: tokens of the longest document.
        predict_at: int64 (S,), positions whose *next* token is a supervised target.
        targets: int64 (S,), those next tokens.
        document: int64 (S,), the document each target belongs to. The first token of a document is never a
            target: nothing before it could predict it.
        counts: int64 (D,), supervised targets of each document.
    """

    input_ids: Tensor
    position_ids: Tensor
    bounds: Tensor
    longest: int
    predict_at: Tensor
    targets: Tensor
    document: Tensor
    counts: Tensor

    def to(self, device: torch.device) -> Pack:
        """The same pack on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in self.__dict__.items()
        }
        return Pack(**moved)


def make_pack(samples: Sequence[Sample]) -> Pack:
    """Lay ``samples`` end to end. An empty sequence gives a pack of two tokens without any target: a rank that
    has nothing to do in a micro-step must still take part in its collectives."""
    if not samples:
        samples = [Sample(np.zeros(2, np.int32), np.zeros(2, np.uint8))]
    lengths = np.array([len(sample.input_ids) for sample in samples], dtype=np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)
    mask = np.concatenate([sample.loss_mask for sample in samples]).astype(bool)
    mask[bounds[:-1]] = False
    target_at = np.flatnonzero(mask)
    positions = np.arange(len(ids)) - np.repeat(bounds[:-1], lengths)
    document = np.searchsorted(bounds, target_at, side="right") - 1
    return Pack(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        bounds=torch.from_numpy(bounds.astype(np.int32)),
        longest=int(lengths.max()),
        predict_at=torch.from_numpy(target_at - 1),
        targets=torch.from_numpy(ids[target_at]),
        document=torch.from_numpy(document),
        counts=torch.from_numpy(np.bincount(document, minlength=len(samples))),
    )
