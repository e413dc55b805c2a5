"""Ctrl-C and SIGTERM: one request saves and stops, a second Ctrl-C stops at once.

Inside the step loop a request waits for the next micro-batch, so that the state can be saved; outside of it
(tokenizing, scoring) there is nothing to save and it takes effect at once. Where no signal reaches a training (a
thread of a Ray worker), a file asks in its place.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from sengi.errors import StoppedByRequest

LOOK = 0.5  # seconds between looks for the file


class StopRequest:
    """Catches SIGINT and SIGTERM while it is entered; outside the main thread only its file is looked for.

    Args:
        file: asks to stop by being there; None where signals do.

    Attributes:
        patient: whether somebody looks at ``reason`` between micro-batches; else a signal raises at once.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.patient = False
        self._file, self._looked = file, -LOOK
        self._reason = ""
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def reason(self) -> str:
        """Name of the signal or file that asked to stop, or empty."""
        if not self._reason and self._file is not None and time.monotonic() - self._looked >= LOOK:
            self._looked = time.monotonic()
            self._reason = self._file.name if self._file.exists() else ""
        return self._reason

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While entered, a request takes effect at once, one that came before too; for work that saves nothing.

        Raises:
            StoppedByRequest: asked to stop.
        """
        before, self.patient = self.patient, False
        try:
            if self.reason:
                raise self._request()
            yield
            if self.reason and not before:  # the work caught it; nobody else will look
                raise self._request()
        finally:
            self.patient = before

    def _request(self) -> StoppedByRequest:
        return StoppedByRequest(f"stopped by {self.reason}, nothing is lost; run the same command to continue")

    def _caught(self, number: int, frame: FrameType | None) -> None:
        # torchrun passes a Ctrl-C on as SIGTERM a moment later: that is the same request, not a second one
        if self._reason and number == signal.SIGINT and time.monotonic() - self._first > 1.0:
            raise KeyboardInterrupt
        if not self._reason:
            self._reason, self._first = signal.Signals(number).name, time.monotonic()
        if not self.patient:
            raise self._request()
