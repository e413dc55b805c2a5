"""The two shapes that data has on its way to the model: a conversation, and a sample of token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of a data file, in one shape whatever its format was.

    Attributes:
        messages: dicts as chat templates expect them: ``role`` and ``content``, optionally
            ``reasoning_content``, ``tool_calls``, ``name``; ``train: false`` on an assistant message leaves it
            out of the loss. Empty for ``kind="text"``.
        kind: ``"chat"`` is rendered with the chat template; ``"text"`` is a plain document, every token of
            which is supervised.
        text: the document of ``kind="text"``.
        tools: tool schemas handed to the chat template, or None.
        unmask: supervise every message except system ones (InstructLab's key).
        source: what the row says of its origin, else the file's stem; held-out loss is reported by it.
        phase: the row's own ``phase`` column, else empty.
        file: path of the file it came from, as given by the user.
        row: number of the row in that file, from 1 (for JSONL: the line number).
    """

    messages: tuple[dict[str, Any], ...]
    kind: Literal["chat", "text"] = "chat"
    text: str = ""
    tools: tuple[dict[str, Any], ...] | None = None
    unmask: bool = False
    source: str = ""
    phase: str = ""
    file: str = ""
    row: int = 0

    @property
    def place(self) -> str:
        """``file:row``, the name of this conversation in messages and ledgers."""
        return f"{self.file}:{self.row}"


@dataclass(frozen=True, slots=True)
class Sample:
    """A tokenized conversation.

    Attributes:
        input_ids: int32, shape (T,).
        loss_mask: uint8, shape (T,); 1 where the token is supervised, that is: counted in the loss when it is
            the *target*. The first token of a sample has no context and is never a target, whatever its mask.
    """

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.uint8]

    @property
    def num_supervised(self) -> int:
        """Targets that count in the loss (the first token never does)."""
        return int(self.loss_mask[1:].sum())
