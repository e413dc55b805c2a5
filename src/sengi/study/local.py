"""Runs as subprocesses of this machine: as many at a time as its devices take, its cores shared out evenly."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from sengi.errors import InputError
from sengi.study.run_executor import Ended
from sengi.study.space import Run
from sengi.study.study_file import Executor

LOG = "train.log"  # in the run folder: what the training printed
TAIL = 64 << 10  # bytes of it that are searched for the cause of a failure
PATIENCE = 600  # seconds torchrun lets a stop take; by default it kills a save after 30
LAUNCHER = re.compile(r"SignalException: Process \d+ got signal: (\d+)")  # torchrun was sent one: it exits with 1


class LocalExecutor:
    """Subprocesses ``python -m sengi train``.

    Args:
        asked: the study file's ``executor``.

    Raises:
        InputError: there are not as many GPUs as a run needs.
    """

    def __init__(self, asked: Executor) -> None:
        gpus, needed = visible_gpus(), asked.processes_per_run
        places = len(gpus) // needed
        if gpus and not places:
            raise InputError(
                f"executor.processes_per_run is {needed}, but this machine shows {len(gpus)} GPUs; lower it"
            )
        parallel = max(1, places) if asked.parallel == "auto" else asked.parallel
        if gpus and parallel > places:
            raise InputError(
                f"executor.parallel is {parallel} runs of {needed} GPUs, but this machine shows {len(gpus)}; lower it"
            )
        self._processes = needed
        self._threads = max(1, len(os.sched_getaffinity(0)) // (parallel * needed))
        self._slots: dict[int, list[str]] = {n: gpus[n * needed : (n + 1) * needed] for n in range(parallel)}
        self._running: dict[str, tuple[subprocess.Popen[bytes], int, list[str]]] = {}
        self._logs: dict[str, tuple[Path, int]] = {}  # and where what an attempt prints begins

    @property
    def free(self) -> int:
        """Slots without a run."""
        return len(self._slots)

    def start(self, run: Run) -> None:
        """Start the training in a free slot."""
        slot, gpus = self._slots.popitem()
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self._threads))}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        training = ["-m", "sengi", "train", str(run.request)]
        if self._processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self._processes}"]
            training = launcher + training
            environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(PATIENCE))
        command = [sys.executable, "-m", "sengi.study.worker", str(os.getpid()), sys.executable, *training]
        with (run.folder / LOG).open("ab") as log:
            self._logs[run.name] = run.folder / LOG, log.tell()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self._running[run.name] = process, slot, gpus

    def stop(self, run: Run) -> None:
        """SIGTERM: the training saves, and exits with 3."""
        if run.name in self._running:
            self._running[run.name][0].send_signal(signal.SIGTERM)

    def ended(self) -> dict[str, Ended]:
        """Collect processes that are gone and free their slots."""
        done: dict[str, Ended] = {}
        for name, (process, slot, gpus) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[name]
                self._slots[slot] = gpus
                done[name] = ended_as(code, *self._logs[name])
        return done


def visible_gpus() -> list[str]:
    """NVIDIA devices that this process may use, as CUDA_VISIBLE_DEVICES names them; no driver, no import of torch."""
    if not Path("/dev/nvidiactl").exists():
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(n) for n in range(torch.cuda.device_count())] if named is None else named.split(",")
    return [name for name in names if name][: torch.cuda.device_count()]


def ended_as(code: int, log: Path, begin: int) -> Ended:
    """How a training ended: by its last error line, or what its exit code says; without a cause for success.

    Args:
        code: of its process; that of a torchrun that was stopped by a signal becomes the signal's.
        log: what it printed, behind ``begin`` bytes of earlier attempts.
    """
    if code == 0:
        return Ended(code, "")
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - TAIL))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    if code > 0 and (launcher := LAUNCHER.search(text)):
        code = -int(launcher[1])
    elif code < 0:
        errors = []
    if code > 0 or errors:
        return Ended(code, errors[-1] if errors else f"exit code {code}; see {log}")
    name = signal.Signals(-code).name if -code in signal.Signals.__members__.values() else f"signal {-code}"
    hand = " (by hand, or the machine ran out of memory)" if code == -signal.SIGKILL else ""
    return Ended(code, f"killed by {name}{hand}")
