"""The executor of this machine: slots, threads, causes of failures, and that nothing outlives the study."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sengi.errors import InputError
from sengi.study import local
from sengi.study.local import LocalExecutor, ended_as
from sengi.study.space import Run
from sengi.study.study_file import Executor


def test_a_machine_without_gpus_takes_one_run_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", list)
    assert LocalExecutor(Executor()).free == 1
    assert LocalExecutor(Executor(parallel=3)).free == 3


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1", "2", "5", "7"])
    assert LocalExecutor(Executor()).free == 5
    assert LocalExecutor(Executor(processes_per_run=2)).free == 2
    with pytest.raises(InputError, match=r"executor\.processes_per_run is 8, but this machine shows 5 GPUs"):
        LocalExecutor(Executor(processes_per_run=8))
    with pytest.raises(InputError, match=r"executor\.parallel is 3 runs of 2 GPUs, but this machine shows 5"):
        LocalExecutor(Executor(processes_per_run=2, parallel=3))


def test_a_run_gets_its_slot_its_share_of_the_cores_and_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["3", "4"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    seen = {}

    class Fake:
        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            seen.update(command=command, env=env)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Fake)
    executor = LocalExecutor(Executor(processes_per_run=2))
    executor.start(Run("001-s1", 1, 1, {}, tmp_path))
    assert executor.free == 0
    assert seen["env"]["CUDA_VISIBLE_DEVICES"] == "3,4"
    assert seen["env"]["OMP_NUM_THREADS"] == "6"
    assert "--nproc-per-node=2" in seen["command"]
    assert seen["command"][-3:] == ["sengi", "train", str(tmp_path / "request.json")]
    # torchrun kills what takes longer than this to save
    assert seen["env"]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "600"
    assert executor.ended()["001-s1"].code == 0
    assert executor.free == 1
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "77")
    executor.start(Run("001-s1", 1, 1, {}, tmp_path))
    assert seen["env"]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "77"


def test_a_failure_is_not_explained_by_an_earlier_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", list)
    log = tmp_path / "train.log"
    log.write_text("error: disk full, a week ago\n")
    executor, popen = LocalExecutor(Executor()), subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: popen(["sh", "-c", "echo bye; exit 1"], **rest))
    executor.start(Run("001-s1", 1, 1, {}, tmp_path))
    executor._running["001-s1"][0].wait()
    assert executor.ended()["001-s1"].cause == f"exit code 1; see {log}"
    assert log.read_text() == "error: disk full, a week ago\nbye\n"


LAUNCHER = "torch.distributed.elastic.multiprocessing.api.SignalException: Process 12 got signal: 15\n"


@pytest.mark.parametrize(
    ("text", "code", "cause"),
    [
        ("step 1\nerror: disk full; free space\n", 1, "disk full; free space"),
        ("error: first\nerror: second\nTraceback\n", 1, "second"),
        ("nothing to see\n", 1, "exit code 1; see "),
        ("", -9, "killed by SIGKILL (by hand, or the machine ran out of memory)"),
        ("", -15, "killed by SIGTERM"),
        ("error: from an earlier session\n", 0, ""),
        (LAUNCHER, 1, "killed by SIGTERM"),
        (f"error: disk full\n{LAUNCHER}", 1, "disk full"),
    ],
)
def test_the_cause_of_a_failure_is_its_last_error(tmp_path: Path, text: str, code: int, cause: str) -> None:
    log = tmp_path / "train.log"
    log.write_text(text)
    ended = ended_as(code, log, 0)
    assert ended.cause.startswith(cause)
    assert bool(ended.cause) == bool(cause)
    # a torchrun that a signal stopped exits with 1
    assert ended.code == (-15 if LAUNCHER in text else code)


def test_a_killed_study_takes_its_trainings_along(tmp_path: Path) -> None:
    # the parent starts a worker that becomes a sleeping program, and is killed
    code = (
        "import os, subprocess, sys, time\n"
        "worker = [sys.executable, '-m', 'sengi.study.worker', str(os.getpid())]\n"
        "sleep = 'import time; print(1, flush=True); time.sleep(600)'\n"
        "child = subprocess.Popen([*worker, sys.executable, '-c', sleep])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "1\n"  # the worker has become the program
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _alive(child):
        time.sleep(0.01)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
