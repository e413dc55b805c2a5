"""A signal in the step loop is noted and waited for; outside of it it takes effect at once."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from sengi.errors import StoppedByRequest
from sengi.train import stopping
from sengi.train.stopping import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_loop_a_signal_is_noted(number: signal.Signals) -> None:
    with StopRequest() as stop:
        stop.patient = True
        assert stop.reason == ""
        os.kill(os.getpid(), number)
        assert stop.reason == number.name


def test_outside_the_loop_it_raises_at_once() -> None:
    with StopRequest(), pytest.raises(StoppedByRequest, match="stopped by SIGTERM, nothing is lost"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopRequest() as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGINT)
        # torchrun sends SIGTERM a moment after a Ctrl-C: the same request
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGINT"
        later = stopping.time.monotonic() + 2
        monkeypatch.setattr(stopping.time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back_and_other_threads_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before

    def enter() -> None:
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
