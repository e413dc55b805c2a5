"""The two terminals that commands write to: results on stdout, progress and messages on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from sengi.train.observer import Observer

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)


def is_first_process() -> bool:
    """Whether this process has something to show: the only one, or the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def unbreakable() -> Iterator[None]:
    """While entered, a reader that goes away (``| head``, a closed terminal) does not end the command.

    What is written after that is lost; files are not touched.
    """
    before = out._file, err._file
    out.file, err.file = _Unbreakable(sys.stdout), _Unbreakable(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    finally:
        out._file, err._file = before


@contextlib.contextmanager
def counting() -> Iterator[Observer]:
    """While entered, a status line that says how far the reading of the data is; gives what has to be told."""
    from sengi.train.observer import Observer

    with err.status("reading data") as status:

        class Show(Observer):
            def tokenizing(self, rows: int, share: float) -> None:
                status.update(f"tokenizing: {rows:,} rows, {share:.0%} of the files")

            def comparing(self, share: float) -> None:
                status.update(f"comparing the data with the evaluation's questions: {share:.0%}")

        yield Show()


class _Unbreakable:
    """A text stream that turns into /dev/null when its pipe breaks."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._let_go()

    def _let_go(self) -> None:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
