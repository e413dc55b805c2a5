"""Every error a user can meet, in one tree.

SengiError                    exit 1   something failed; the message says what, where and what to do
├── InputError                exit 2   what was asked for cannot be done; nothing was started
│   ├── RecipeError                    a key or value of a recipe
│   ├── DataError                      a data file or a row in it
│   ├── MaskError                      a conversation whose loss mask is not certain
│   └── ModelError                     a model folder, its weights, tokenizer or template
├── StorageError              exit 1   a file of a run folder could not be written or read
├── CheckpointError           exit 1   a checkpoint is incomplete or corrupt
├── NonFiniteError            exit 1   loss or gradient norm is NaN or infinite
├── RankError                 exit 1   another process of the run failed; carries its message
└── StoppedByRequest          exit 3   stopped by a signal or a request, resumable
    └── StoppedByAlarm                 stopped by the recipe's on_alarm: stop

A message has one line and three parts: what was set or found and where (``file:line``, step, sample id,
rank), why that cannot be, and which option or action mends it. The command line prints it without a traceback.
"""

from __future__ import annotations

from typing import Any


class SengiError(Exception):
    """Base of all errors that Sengi raises on purpose; ``exit_code`` is the exit status of the command."""

    exit_code = 1
    elsewhere = False  # True on the ranks that only learned of it
    alarm: dict[str, Any] | None = None  # the alarm behind it, as status.json keeps it


class InputError(SengiError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe key is unknown or its value is out of range."""


class DataError(InputError):
    """A data file is missing, cut or holds a row that cannot be read."""


class MaskError(InputError):
    """The supervised tokens of a conversation cannot be found with certainty.

    Args:
        reason: a short fixed name, used to count drops (for example ``"no_assistant_turn"``).
        message: the sentence for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[MaskError], tuple[str, str]]:
        return type(self), (self.reason, str(self))  # worker processes send it home


class ModelError(InputError):
    """A model cannot be loaded safely or is not supported."""


class StorageError(SengiError):
    """A read or write of a run folder failed (disk full, I/O error, permission)."""


class CheckpointError(SengiError):
    """A checkpoint does not verify."""


class NonFiniteError(SengiError):
    """Loss or gradient norm is not finite; no optimizer step was taken."""


class RankError(SengiError):
    """Another process of the same run failed first."""


class StoppedByRequest(SengiError):
    """The run saved its state and stopped because it was asked to."""

    exit_code = 3


class StoppedByAlarm(StoppedByRequest):
    """The run saved its state and stopped because an alarm was raised and its recipe says ``on_alarm: stop``."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The text of a foreign error on one line, or its class where it has none."""
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]


def class_and_text(error: BaseException) -> str:
    """As `one_line`, with the class first."""
    return f"{type(error).__name__}: {one_line(error)}"
