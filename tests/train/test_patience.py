"""Long work of rank 0: the heartbeat goes on, its outcome is everybody's, a request to stop does not wait."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.train.memory_run import ALONE

from sengi.errors import InputError, StoppedByRequest
from sengi.train import patience, run_folder
from sengi.train.patience import on_first_patiently
from sengi.train.run_folder import RunFolder
from sengi.train.stopping import StopRequest


def heartbeat(folder: Path) -> float:
    return float(json.loads((folder / "status.json").read_text())["heartbeat"])


def test_the_heartbeat_goes_on_while_the_work_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEARTBEAT", 0.01)
    monkeypatch.setattr(run_folder, "HEARTBEAT", 0.01)
    folder = RunFolder(tmp_path)
    folder.status()

    def work() -> list[float]:
        seen = [heartbeat(tmp_path)]
        deadline = time.monotonic() + 60
        while len(seen) < 4 and time.monotonic() < deadline:
            if (now := heartbeat(tmp_path)) > seen[-1]:
                seen.append(now)
        return seen

    seen = on_first_patiently(ALONE, work, folder, StopRequest())
    assert len(seen) == 4
    last = heartbeat(tmp_path)
    time.sleep(0.1)
    assert heartbeat(tmp_path) == last  # nothing goes on after the work


def test_an_error_is_passed_on(tmp_path: Path) -> None:
    def fail() -> None:
        raise InputError("no such task")

    with pytest.raises(InputError, match="no such task"):
        on_first_patiently(ALONE, fail, RunFolder(tmp_path), StopRequest())


def swallowed() -> None:
    """A library that catches whatever comes."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except Exception:
        return


def plainly() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


# In the step loop a request waits for the micro-batch; here everything is saved, so it does not wait.
@pytest.mark.parametrize("work", [plainly, swallowed])
def test_a_request_takes_effect_at_once(tmp_path: Path, work: Callable[[], None]) -> None:
    began = time.monotonic()
    with StopRequest() as stop, pytest.raises(StoppedByRequest, match="stopped by SIGTERM, nothing is lost"):
        on_first_patiently(ALONE, work, RunFolder(tmp_path), stop)
    assert time.monotonic() - began < 30


def test_a_request_that_came_before_takes_effect_before_the_work(tmp_path: Path) -> None:
    with StopRequest() as stop:
        stop.patient = True
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedByRequest):
            on_first_patiently(ALONE, lambda: pytest.fail("it ran"), RunFolder(tmp_path), stop)
        assert stop.patient  # as before


# Setting up has neither a run folder nor a request to heed, but may tokenize for hours.
def test_before_there_is_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEARTBEAT", 0.01)
    assert on_first_patiently(ALONE, lambda: time.sleep(0.1) or 5) == 5
