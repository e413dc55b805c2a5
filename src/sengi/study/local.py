"""Runs as subprocesses of this machine: as many at a time as its devices take, its cores shared out evenly."""

from __future__ import annotations

import os
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
        self._folders: dict[str, Path] = {}

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
        command = [sys.executable, "-m", "sengi.study.worker", str(os.getpid()), sys.executable, *training]
        with (run.folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self._running[run.name] = process, slot, gpus
        self._folders[run.name] = run.folder

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
                done[name] = Ended(code, failure_cause(self._folders[name] / LOG, code))
        return done


def visible_gpus() -> list[str]:
    """NVIDIA devices that this process may use, as CUDA_VISIBLE_DEVICES names them; no driver, no import of torch."""
    if not Path("/dev/nvidiactl").exists():
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(n) for n in range(torch.cuda.device_count())] if named is None else named.split(",")
    return [name for name in names if name][: torch.cuda.device_count()]


def failure_cause(log: Path, code: int) -> str:
    """Why a training ended: its last error line, or what its exit code says; empty for success."""
    if code == 0:
        return ""
    text = b""
    if log.exists():
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read()
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.Signals.__members__.values() else f"signal {-code}"
        return f"killed by {name}" + (" (by hand, or the machine ran out of memory)" if code == -signal.SIGKILL else "")
    return errors[-1] if errors else f"exit code {code}; see {log}"
