"""Ctrl-C and SIGTERM: one request saves and stops, a second Ctrl-C stops at once.

Inside the step loop a request waits for the next micro-batch, so that the state can be saved; outside of it
(tokenizing, scoring) there is nothing to save and it takes effect at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from sengi.errors import StoppedByRequest


class StopRequest:
    """Catches SIGINT and SIGTERM while it is entered; does nothing outside the main thread.

    Attributes:
        reason: name of the signal that asked to stop, or empty.
        patient: whether somebody looks at ``reason`` between micro-batches; else a signal raises at once.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.patient = False
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
        if self.reason and number == signal.SIGINT and time.monotonic() - self._first > 1.0:
            raise KeyboardInterrupt
        if not self.reason:
            self.reason, self._first = signal.Signals(number).name, time.monotonic()
        if not self.patient:
            raise self._request()
