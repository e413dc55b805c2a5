"""Questions that did not go to the model as they were: cut on the left, or not at all."""

from __future__ import annotations

import logging
from typing import NamedTuple

from sengi.harness.lm_eval_api import Instance

Key = tuple[str | None, int | None, str]


class Truncated(NamedTuple):
    """A question that lost tokens on the left because it is longer than the model's context.

    Attributes:
        task: name of lm-eval's task; None for a request that belongs to none.
        doc_id: number of the question in the task.
        kind: ``loglikelihood`` or ``generate_until``.
        tokens_over: tokens that were cut; of several requests of a question the most.
    """

    task: str | None
    doc_id: int | None
    kind: str
    tokens_over: int


class Excluded(NamedTuple):
    """A question that cannot be scored; its log-likelihood is NaN, never a number.

    Attributes:
        task: name of lm-eval's task; None for a request that belongs to none.
        doc_id: number of the question in the task.
        kind: ``loglikelihood``.
        reason: one sentence.
    """

    task: str | None
    doc_id: int | None
    kind: str
    reason: str


class Unscored:
    """Collects both, one entry a question and kind of request."""

    def __init__(self) -> None:
        self._cut: dict[Key, int] = {}
        self._left_out: dict[Key, str] = {}

    def cut(self, request: Instance, tokens: int) -> None:
        """Note that a request lost so many tokens."""
        key = _key(request)
        self._cut[key] = max(tokens, self._cut.get(key, 0))

    def leave_out(self, request: Instance, reason: str) -> None:
        """Note that a request cannot be scored, and say so once."""
        key = _key(request)
        if key not in self._left_out:
            logging.getLogger(__name__).warning(f"task {key[0]}, question {key[1]}: {reason}; it cannot be scored")
        self._left_out[key] = reason

    @property
    def truncated(self) -> list[Truncated]:
        """Questions that lost tokens on the left."""
        return [Truncated(*key, tokens) for key, tokens in self._cut.items()]

    @property
    def excluded(self) -> list[Excluded]:
        """Questions that cannot be scored."""
        return [Excluded(*key, reason) for key, reason in self._left_out.items()]


def _key(request: Instance) -> Key:
    return request.task_name, request.doc_id, request.request_type
