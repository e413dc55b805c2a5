"""A batch of conversations on its way to tokens: rendered, encoded, masked, each step for all of them at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from sengi.conversation import Conversation, Sample
from sengi.errors import MaskError
from sengi.masks.span import Layout

if TYPE_CHECKING:
    from sengi.masks.quick import Shape


class QuickMismatch(Exception):
    """The quick way gave other tokens than the full one; what it gave for earlier rows cannot be trusted either."""


@dataclass(frozen=True, slots=True)
class Block:
    """The samples of n conversations end to end.

    Attributes:
        ids: int32, shape (T,).
        mask: uint8, shape (T,).
        lengths: int64, shape (n,); 0 where there is no sample.
        errors: why there is none, by number of the conversation.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    errors: dict[int, MaskError]

    @classmethod
    def of(cls, results: Sequence[Sample | MaskError]) -> Block:
        """A block of single results."""
        samples = [result for result in results if isinstance(result, Sample)]
        return cls(
            np.concatenate([sample.input_ids for sample in samples] or [np.empty(0, np.int32)]),
            np.concatenate([sample.loss_mask for sample in samples] or [np.empty(0, np.uint8)]),
            np.array([len(r.input_ids) if isinstance(r, Sample) else 0 for r in results], np.int64),
            {number: result for number, result in enumerate(results) if isinstance(result, MaskError)},
        )

    def samples(self) -> list[Sample | MaskError]:
        """One entry a conversation, in order; the arrays are views of this block's."""
        ends = np.cumsum(self.lengths).tolist()
        return [
            self.errors[number] if number in self.errors else Sample(self.ids[start:end], self.mask[start:end])
            for number, (start, end) in enumerate(itertools.pairwise([0, *ends]))
        ]


@dataclass(slots=True)
class Work:
    """A batch between its steps.

    Attributes:
        rows: the conversations.
        quick: number and shape of rows that are put together; ``texts`` holds their texts.
        full: number of rows that are rendered, and what was found in the rendering.
        tokens: ids of all quick rows end to end, shape (T,), and the number of each row's.
        encodings: of those of the other rows that are encoded as they stand.
    """

    rows: list[Conversation]
    quick: list[tuple[int, Shape]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    full: list[tuple[int, Layout | MaskError]] = field(default_factory=list)
    tokens: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None
    encodings: list[Encoding] = field(default_factory=list)
