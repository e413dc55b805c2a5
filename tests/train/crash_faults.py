"""A fault on the Nth storage call of a whole session of training, and what must be true after it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_harness as harness

from sengi import storage
from sengi.errors import CheckpointError

STEP = 3  # the session goes from checkpoint 2 to the end of the run at 3
ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO, "erofs": errno.EROFS}
CURES = {
    "enospc": "free space on this disk, then run the same command again",
    "eio": "check the disk, then run the same command again",
    "erofs": "the disk is read-only; choose another output_dir",
}


class FaultAt:
    """The fault of one child: ``disk.fault`` calls it before every raw call.

    kill    SIGKILL at call N
    enospc  the disk fills up at call N: a write is cut short first, and later writes and folders fail, too
    eio     call N alone fails
    erofs   the disk turns read-only: call N and everything after it fails
    short   call N writes 3 bytes and says so, as the kernel may
    """

    def __init__(self, mode: str, number: int) -> None:
        self.mode, self.number = mode, number
        self.calls: list[tuple[str, str]] = []  # call N and those that follow, name and path

    def __call__(self, name: str, number: int, path: Path) -> int | None:
        if number < self.number:
            return None
        self.calls.append((name, str(path)))
        if number == self.number:
            return self._fire(name)
        if self.mode == "erofs" or (self.mode == "enospc" and name in ("write", "mkdir")):
            raise OSError(ERRORS[self.mode], os.strerror(ERRORS[self.mode]))
        return None

    def _fire(self, name: str) -> int | None:
        if self.mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "short" or (self.mode == "enospc" and name == "write"):
            return 3
        raise OSError(ERRORS[self.mode], os.strerror(ERRORS[self.mode]))


def make_base(folder: Path, train: Callable[[Path, Any], Any], unbroken: Path) -> Path:
    """A run folder that makes the next session use every verb of the storage module.

    It was killed half-way through saving step 3: checkpoint 2, the log one step ahead and torn, a half stage, a
    half-removed checkpoint, a half-written file; beside it a checkpoint 3 with a flipped bit.
    """
    run = folder / "run"

    def die(name: str, number: int, path: Path) -> None:
        if name == "write" and path.parent.name.startswith(f".tmp-checkpoint-{STEP}") and path.name == "config.json":
            os.kill(os.getpid(), signal.SIGKILL)

    code, told = train(run, die)
    assert code == -signal.SIGKILL, told
    assert [path.name for path in storage.published(run, "checkpoint-")] == [f"checkpoint-{STEP - 1}"]
    with (run / "dynamics.jsonl").open("a") as log:
        log.write('{"step": 4, "los')
    (run / ".status.json.0123abcd.tmp").write_text("{")
    (run / "evaluations" / ".step-0.json.0123abcd.tmp").write_text("{")
    shutil.copytree(run / f"checkpoint-{STEP - 1}" / "training_state", run / ".trash-checkpoint-1-0123abcd" / "state")
    shutil.copytree(unbroken / f"checkpoint-{STEP}", run / f"checkpoint-{STEP}")
    weights = run / f"checkpoint-{STEP}" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    return run


def newest_good(run: Path) -> int:
    """Step of the newest checkpoint that verifies; 0 where there is none."""
    for folder in reversed(storage.published(run, "checkpoint-")):
        with contextlib.suppress(CheckpointError):
            return int(storage.verify(folder)["step"])
    return 0


def judge(
    run: Path, originals: dict[int, Path], unbroken: Path, fault: FaultAt, code: int, told: list[Any], begun: bool
) -> list[str]:
    """What is wrong with the folder and the message right after the fault; empty where all is well.

    ``originals`` has, for each step, a run whose checkpoint of that step is right; ``begun`` says that the folder had
    a good one before.
    """
    events = {event: value for event, value in told}
    wrong = []
    if fault.mode == "kill":
        if code != -signal.SIGKILL:
            wrong.append(f"exit {code}")
    elif fault.mode != "short":
        kind, text = events.get("error", ["none", ""])
        if (code, kind) != (1, "StorageError"):
            wrong.append(f"exit {code}, {kind}: {text} {events.get('traceback')}")
        elif not text.startswith(f"{run}") or "\n" in text or CURES[fault.mode] not in text:
            wrong.append(f"message: {text}")
    elif code != 0:
        wrong.append(f"exit {code}: {events}")
    good = _good_checkpoints(run)
    if begun and not good:
        wrong.append("neither the old nor the new checkpoint loads")
    for step, files in good.items():
        if files != harness.content(originals[step] / f"checkpoint-{step}"):
            wrong.append(f"checkpoint {step} is a mix")
    if events.get("saved", 0) > max(good, default=0):
        wrong.append("the acknowledged step is lost")
    return wrong + _log_and_status(run, unbroken, max(good, default=0)) + _retried(fault, events, good)


def judge_end(run: Path, unbroken: Path, code: int, told: list[Any], corrupt: int) -> list[str]:
    """What is wrong after the next start, which must run to the end; ``corrupt`` checkpoints were in the folder."""
    if code != 0:
        return [f"the next start: exit {code}, {told[-2:]}"]
    kept = list(run.glob(".quarantine-*"))
    wrong = [] if len(kept) == corrupt else [f"{len(kept)} checkpoints were set aside, {corrupt} were corrupt"]
    for path in kept:
        path.rename(run.parent / path.name)
    return wrong + [f"after the next start: {text}" for text in harness.differences(run, unbroken, STEP)]


def _good_checkpoints(run: Path) -> dict[int, dict[str, bytes]]:
    good = {}
    for folder in storage.published(run, "checkpoint-"):
        try:
            good[int(storage.verify(folder)["step"])] = harness.content(folder)
        except CheckpointError:
            continue
    return good


def _log_and_status(run: Path, unbroken: Path, saved: int) -> list[str]:
    """The log covers the saved steps with the right values; every small file is the old or the new one, whole."""
    wrong = []
    lines = storage.read_lines(run / "dynamics.jsonl")
    kept = [{k: v for k, v in line.items() if k not in harness.TIMING} for line in lines]
    if kept != harness.dynamics(unbroken)[: len(kept)] or len(kept) < saved:
        wrong.append(f"dynamics.jsonl has {len(kept)} lines, {saved} steps are saved")
    for path in [*run.glob("*.json"), *(run / "evaluations").glob("*.json")]:
        try:
            json.loads(path.read_bytes())
        except ValueError:
            wrong.append(f"{path.name} is torn")
    return wrong


def _retried(fault: FaultAt, events: dict[str, Any], good: dict[int, Any]) -> list[str]:
    """After a failed fsync of a file: no second one on it, and nothing that rests on it is published."""
    if fault.mode not in ERRORS:
        return []
    (name, path), *after = events["calls"]
    if name != "fsync" or Path(path).is_dir():
        return []
    wrong = [f"fsync of {path} was retried"] if ["fsync", path] in after else []
    if STEP in good and (".tmp-checkpoint-" in path or path.endswith("dynamics.jsonl")):
        wrong.append(f"published after a failed fsync of {path}")
    return wrong
