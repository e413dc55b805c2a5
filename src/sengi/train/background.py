"""The queue of ``eval_process: second``: checkpoints that wait for a second process, one at a time and in order."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sengi.evaluate.suite import Suite

# What torchrun says to its ranks; the second process belongs to no group
_OF_A_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
COMMAND = (sys.executable, "-m", "sengi.train.score_step")
CAUSE_BYTES = 4_000  # of the end of the second process's standard error


@dataclass(frozen=True)
class Job:
    """One model to score: the step it was saved at (0: the base model) and its folder."""

    step: int
    model: Path


class Background:
    """Scores checkpoints in a second process while this one goes on.

    Args:
        run: the run folder, into whose ``evaluations/`` the second process writes.
        suite: what to ask.
        data: the suite's fingerprint.
        threads: of the second process.
        command: what the second process is.
    """

    def __init__(self, run: Path, suite: Suite, data: str, threads: int, command: Sequence[str] = COMMAND) -> None:
        self._command = list(command)
        self._facts = {"run": str(run), "data": data, "parent": os.getpid()}
        self._facts["suite"] = {**dataclasses.asdict(suite), "data_root": suite.data_root and str(suite.data_root)}
        self._threads = threads
        self._waiting: deque[Job] = deque()
        self._running: tuple[Job, subprocess.Popen[bytes], IO[bytes]] | None = None
        self._unstarted: deque[tuple[int, str]] = deque()

    @property
    def steps(self) -> list[int]:
        """Steps that :meth:`poll` has not told of yet; their checkpoints must stay on disk."""
        running = [self._running[0].step] if self._running else []
        return [step for step, _ in self._unstarted] + running + [job.step for job in self._waiting]

    def add(self, job: Job) -> None:
        """Put a checkpoint at the end of the queue."""
        self._waiting.append(job)
        self._start_next()

    def poll(self) -> tuple[int, str] | None:
        """Look whether the second process ended, and start the next one.

        Returns:
            The step that is done and the cause of its failure, empty where it is scored; None while it works.
        """
        if self._unstarted:
            return self._unstarted.popleft()
        if self._running is None or self._running[1].poll() is None:
            return None
        job, process, errors = self._running
        self._running = None
        cause = _cause(process.returncode, errors) if process.returncode else ""
        errors.close()
        self._start_next()
        return job.step, cause

    def close(self) -> None:
        """Kill the second process; what it found so far is kept and goes on with the run."""
        self._waiting.clear()
        if self._running is not None:
            _, process, errors = self._running
            process.kill()
            process.wait()
            errors.close()
            self._running = None

    def _start_next(self) -> None:
        if self._running is not None or not self._waiting:
            return
        job = self._waiting.popleft()
        try:
            self._running = self._start(job)
        except OSError as error:  # no memory or no process left: the run itself may well go on
            self._unstarted.append((job.step, f"the second process could not be started: {error}"))

    def _start(self, job: Job) -> tuple[Job, subprocess.Popen[bytes], IO[bytes]]:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process lives
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_GROUP)}
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            env=environment | {"OMP_NUM_THREADS": str(self._threads)},
            start_new_session=True,  # a Ctrl-C in the terminal is for the run, which decides what becomes of this one
        )
        facts = {**self._facts, "step": job.step, "model": str(job.model)}
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; poll() tells why
            process.stdin.write(json.dumps(facts).encode())
            process.stdin.close()
        return job, process, errors


def _cause(code: int, errors: IO[bytes]) -> str:
    """Why the second process failed, in one line."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - CAUSE_BYTES))
    lines = [line.strip() for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
    if code < 0:
        killed = f"the second process was ended by {signal.Signals(-code).name}"
        return killed + (", as a machine without free memory does" if -code == signal.SIGKILL else "")
    return lines[-1] if lines else f"the second process ended with exit status {code}"
