"""The command ``python -m sengi train``, killed, stopped, filled up and continued.

By default it is a fork of a process that has done its imports (tests/warm.py); with `make test-slow`, and by the
example for torchrun, it starts from nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_harness import differences, dynamics, environment, seeded, write_recipe, write_small_model
from tests import warm

from sengi import storage

STEPS = 60
PARTS, KILLS = 7, 3  # one part by default, the others with `make test-slow`
TRAIN = ["-m", "sengi", "train"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "torchrun" / "one-machine.sh"


class Command:
    """One call of ``sengi train`` on the recipe of a folder; its output goes to a file.

    Args:
        cold: the command that starts it from nothing; a fork that has its imports without.
    """

    def __init__(self, folder: Path, cold: list[str] | None = None) -> None:
        self.run, self.born = folder / "run", time.monotonic()
        self.output = folder / "output.txt"
        self.before = newest(self.run)
        with self.output.open("w") as output:
            recipe, env = str(folder / "recipe.yaml"), environment(folder.parent)
            self.process: subprocess.Popen[bytes] | warm.Process
            if cold is None:
                self.process = warm.start([*TRAIN, recipe], env=env, stdout=output, stderr=output)
            else:
                env |= {"PYTHON": sys.executable, "PROCESSES": "2"}
                self.process = subprocess.Popen([*cold, recipe], env=env, stdout=output, stderr=output)

    def wait_until_saved(self, step: int) -> None:
        """Return when a checkpoint of that step or a later one is there, or the process is gone."""
        deadline = time.monotonic() + 120
        while newest(self.run) < step and self.process.poll() is None:
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.002)

    def end(self, number: int | None = None) -> int:
        """Send a signal, if there is one, and wait; returns the exit code."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(timeout=120)

    def text(self) -> str:
        return self.output.read_text()

    def acknowledged(self) -> int:
        """The last step that it said was saved."""
        return max([0, *map(int, re.findall(r"^saved .*checkpoint-(\d+)$", self.text(), re.MULTILINE))])


def newest(run: Path) -> int:
    """Step of the newest published checkpoint; 0 where there is none."""
    return max([0, *(int(path.name.rpartition("-")[2]) for path in run.glob("checkpoint-*"))])


def folder_for(root: Path, name: str, keep: int | None = 2) -> Path:
    """A folder with its own recipe, beside the shared model, data and cache."""
    folder, data = root / name, [{"path": str(root / "train.jsonl")}]
    folder.mkdir()
    write_recipe(folder, max_steps=STEPS, save_total_limit=keep, model_name_or_path=str(root / "model"), data=data)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data, token cache and an unbroken run, made once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "real-process"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "unbroken").exists():
            write_small_model(root / "model")
            write_recipe(root)
            command = Command(folder_for(root, "unbroken", keep=None))
            assert command.end() == 0, command.text()
    return root


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, PARTS))])
def test_kill_at_random_moments(root: Path, part: int) -> None:
    draw, folder = random.Random(seeded(part)), folder_for(root, f"kills-{part}")
    cold, run = [sys.executable, *TRAIN] if part else None, folder / "run"
    kills = in_save = in_start = 0
    startup = 0.0
    while kills < KILLS:
        command = Command(folder, cold)
        if kills % 2:  # while it starts or resumes: claims, sweeps, verifies, loads, cuts the log
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.process.wait(draw.uniform(0.5, 1.0) * startup)
        else:
            command.wait_until_saved(command.before + 1)
            startup = time.monotonic() - command.born
            time.sleep(draw.uniform(0, 0.15))
        code = command.end(signal.SIGKILL)
        if code == 0:  # it was quicker than the kill: once more from the start
            assert differences(run, root / "unbroken" / "run", STEPS) == []
            shutil.rmtree(run)
            continue
        assert code == -signal.SIGKILL, command.text()
        kills += 1
        # No step that it called saved is lost.
        good = newest(run)
        assert good == 0 or storage.verify(run / f"checkpoint-{good}")["step"] == good
        assert good >= max(command.before, command.acknowledged())
        in_save += bool(list(run.glob(".tmp-checkpoint-*")))
        in_start += good == command.before
    print({"kills": kills, "in_save": in_save, "in_start": in_start, "step": good})
    last = Command(folder, cold)
    assert last.end() == 0, last.text()
    assert not good or f"continuing after step {good} from checkpoint-{good}" in last.text()
    assert differences(run, root / "unbroken" / "run", STEPS) == []


# Ctrl-C and SIGTERM save and exit with 3; a second process is turned away; a corrupt newest checkpoint is said
# aloud and left for the one before; the end is bit-equal all the same.
def test_signals_a_second_process_and_a_corrupt_checkpoint(root: Path) -> None:
    folder = folder_for(root, "signals")
    run = folder / "run"
    first = Command(folder)
    first.wait_until_saved(2)
    os.kill(first.process.pid, signal.SIGSTOP)  # so that it is still there when the second one looks
    second_folder = root / "signals-second"
    second_folder.mkdir()
    (second_folder / "recipe.yaml").write_bytes((folder / "recipe.yaml").read_bytes())
    second = Command(second_folder)
    assert second.end() == 2
    assert f"error: {run}: process {first.process.pid} is already working on this run" in second.text()
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.end(signal.SIGTERM) == 3, first.text()
    stopped = re.search(r"error: stopped by SIGTERM after step (\d+), state saved; run the same command", first.text())
    assert stopped, first.text()
    assert newest(run) == int(stopped[1])

    weights = run / f"checkpoint-{stopped[1]}" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    third = Command(folder)
    third.wait_until_saved(int(stopped[1]) + 2)
    assert third.end(signal.SIGINT) == 3, third.text()
    assert f"corrupt checkpoint: {weights}: the content changed since it was saved" in third.text()
    assert f"continuing after step {int(stopped[1]) - 1} from checkpoint-{int(stopped[1]) - 1}" in third.text()
    assert "stopped by SIGINT" in third.text()
    (kept,) = run.glob(".quarantine-*")
    kept.rename(folder / kept.name)

    last = Command(folder)
    assert last.end() == 0, last.text()
    assert differences(run, root / "unbroken" / "run", STEPS) == []


def test_one_process_continues_on_two(root: Path) -> None:
    folder = folder_for(root, "elastic")
    shutil.copytree(root / "unbroken" / "run", folder / "run")
    for path in storage.published(folder / "run", "checkpoint-")[10:]:
        shutil.rmtree(path)
    two = Command(folder, ["bash", str(EXAMPLE)])
    assert two.end() == 0, two.text()
    assert "continuing after step 10 from checkpoint-10" in two.text()
    assert "saved by 1 processes and goes on with 2" in two.text()
    ours, theirs = dynamics(folder / "run"), dynamics(root / "unbroken" / "run")
    assert [line["samples_sha256"] for line in ours] == [line["samples_sha256"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-4)
    assert [line["grad_norm"] for line in ours] == pytest.approx([line["grad_norm"] for line in theirs], rel=1e-3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 MB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mounted)], capture_output=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.decode().strip()}")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_full_disk_at_save(root: Path, small_disk: Path) -> None:
    folder = folder_for(root, "full")
    (folder / "run").symlink_to(small_disk / "run")
    (small_disk / "run").mkdir()
    command = Command(folder)
    command.wait_until_saved(3)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    assert command.end() == 1, command.text()
    error = command.text().splitlines()[-1]
    assert re.search(
        rf"^error: {folder}/run/\S+: (writing|appending) [\d,]+ bytes failed: No space left on device; 0.00 GB free; "
        r"free space on this disk, then run the same command again to continue$",
        error,
    ), error
    assert storage.verify(folder / "run" / f"checkpoint-{command.acknowledged()}")
    ballast.unlink()
    last = Command(folder)
    assert last.end() == 0, last.text()
    assert differences(folder / "run", root / "unbroken" / "run", STEPS) == []
