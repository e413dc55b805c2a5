"""Runs a study in a process that is killed again and again, each time a fork of this one.

    study_program.py KILLS SEED UNBROKEN_STUDY KILLED_STUDY

This process trains once and forks a session that calls ``run_study``, as ``sengi study`` does. Trainings are
forked from the session and call ``train``, as ``sengi train`` does; they die with it as those of the shipped executor
do. Prints, for each of the two studies and each of its sessions, the runs it started, its exit code, and what was
finished after it.

A study whose judge stops runs is killed where that hurts most: the verdict is written down, and its training does not
know yet.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

from sengi.errors import InputError, SengiError
from sengi.recipe_sources import resolve_recipe
from sengi.storage import lock
from sengi.study import scheduler
from sengi.study.chain import run_chain
from sengi.study.judge import JudgeSettings, Verdict
from sengi.study.run_executor import Ended
from sengi.study.scheduler import run_study
from sengi.study.signals import History
from sengi.study.space import Run
from sengi.study.study_file import Executor, StudyRequest, read_study
from sengi.train import setup
from sengi.train.parent import die_with
from sengi.train.run import train


class ForkExecutor:
    """One training at a time, or as many as asked, each a fork of this process; perhaps killed when it stops one."""

    def __init__(self, asked: Executor, journal: Path, killed: bool) -> None:
        self.killed = killed
        self.room = asked.parallel if isinstance(asked.parallel, int) else 1
        self.pids: dict[str, int] = {}
        self.journal = journal

    @property
    def free(self) -> int:
        return self.room - len(self.pids)

    def start(self, run: Run) -> None:
        with self.journal.open("a") as file:
            file.write(str(run.folder) + "\n")
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            die_with(parent)
            drop_inherited_lock()
            code = 1
            try:
                train(resolve_recipe(run.request))
                code = 0
            except SengiError as error:
                (run.folder / "train.log").write_text(f"error: {error}\n")
                code = error.exit_code
            finally:
                os._exit(code)
        self.pids[run.name] = pid

    def stop(self, run: Run) -> None:
        if self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if run.name in self.pids:
            os.kill(self.pids[run.name], signal.SIGTERM)

    def ended(self) -> dict[str, Ended]:
        done = {}
        for name, pid in list(self.pids.items()):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                del self.pids[name]
                done[name] = Ended(os.waitstatus_to_exitcode(status), "its cause")
        return done


def stop_high_rates(histories: list[History], settings: JudgeSettings) -> list[Verdict]:
    """In place of the judge, which hears little in the norms of a model of 4,000 parameters."""
    check, calm = settings.check_samples, "learning_rate 0.001"
    guilty = sorted(run.name for run in histories if run.settings != calm and run.reached(check))
    return [Verdict(name, check, "stop", "stopped: a high rate") for name in guilty]


def drop_inherited_lock() -> None:
    """Close the study's lock, as starting a program does: a fork that is dying must not hold it against the next."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if entry.readlink().name == "run.lock":
                os.close(int(entry.name))


def wait_for_the_lock(folder: Path) -> None:
    """Until the last fork of a killed session is gone, too."""
    deadline = time.monotonic() + 60
    while folder.is_dir() and time.monotonic() < deadline:
        with contextlib.suppress(InputError), lock(folder):
            return
        time.sleep(0.01)


def session(request: StudyRequest, journal: Path, killed: bool) -> int:
    """Fork a session, perhaps one that is killed when it stops a run; returns its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work = run_chain if request.file.stages else run_study
            work(request, make_executor=lambda asked: ForkExecutor(asked, journal, killed))
            code = 0
        except SengiError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        finally:
            os._exit(code)
    return pid


def of_runs(folder: Path, name: str) -> list[Path]:
    """Files of all runs of a study or of its stages; not by ``**``, which looks into folders that vanish meanwhile."""
    return [*folder.glob(f"runs/*/{name}"), *folder.glob(f"*/runs/*/{name}")]


def progress(folder: Path) -> int:
    """Lines of all dynamics and evaluations so far: a clock that does not depend on the machine."""
    lines = sum(path.read_bytes().count(b"\n") for path in of_runs(folder, "dynamics.jsonl"))
    return lines + sum(len(of_runs(folder, event)) for event in ("evaluations/*.json", "outcome.json"))


def unbroken_or_killed(request: StudyRequest, kills: int, rng: random.Random) -> list[dict[str, object]]:
    """A study with so many kills, each at a random moment or at a verdict; what its sessions did."""
    judged = request.file.early_termination.mode == "terminate"
    sessions: list[dict[str, object]] = []
    for number in range(kills + 1):
        journal = request.folder.with_name(f"{request.folder.name}-journal-{number}")
        journal.touch()
        wait_for_the_lock(request.folder)
        pid, code = session(request, journal, judged and number < kills), None
        target = math.inf if judged else progress(request.folder) + rng.randint(1, 6)
        while number < kills and progress(request.folder) < target:
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.005)
        if number < kills and code is None:
            time.sleep(rng.random() * 0.2)
            os.kill(pid, signal.SIGKILL)
        if code is None:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        states = {str(path.parent): json.loads(path.read_text()) for path in of_runs(request.folder, "status.json")}
        finished = sorted(name for name, status in states.items() if status["state"] == "finished")
        sessions.append({"started": journal.read_text().split(), "code": code, "finished": finished})
    return sessions


def main() -> None:
    kills, rng = int(sys.argv[1]), random.Random(int(sys.argv[2]))
    calm, killed = (read_study(Path(name)) for name in sys.argv[3:])
    setup.peak_flops = lambda *_: None  # seconds of measuring that no score depends on
    if calm.file.early_termination.mode == "terminate":
        scheduler.judge, scheduler.POLL = stop_high_rates, 0.02  # type: ignore[assignment]
    warm = calm.run_values({"learning_rate": 1e-3}, 0, calm.folder.with_name("warm")) | {"max_steps": 1}
    train(resolve_recipe(values=warm))  # what a first training loads, every fork finds in its memory
    gc.freeze()  # and does not look through for garbage
    print(json.dumps([unbroken_or_killed(calm, 0, rng), unbroken_or_killed(killed, kills, rng)]))


if __name__ == "__main__":
    main()
