"""The fork server: imports torch and builds the model once, then forks a child for each try at training.

A child calls ``sengi.train.run.train``, the function behind ``sengi train``. Replaced in it is only what reads
model, tokenizer and token store: they are in the memory that the child inherits. Claiming the folder, sweeping,
verifying, loading, the step, the log, saving, retention and evaluation are the shipped code.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import crash_faults
import crash_harness as harness
import crash_ranks
import torch
from crash_faults import FaultAt

from sengi.disk import disk
from sengi.errors import SengiError
from sengi.recipe_sources import ResolvedRecipe, resolve_recipe
from sengi.train import checkpoint, run_folder
from sengi.train import run as training
from sengi.train.distributed import World
from sengi.train.observer import Observer
from sengi.train.setup import set_up

Fault = Callable[[str, int, Path], int | None]
STEPS = 30  # of the run that is killed
PHASED = 22  # of the run in three phases that is killed; no other run has as many
PHASES = {"by": "response_length", "at": [0.3, 0.6], "replay": 0.2, "select": "heldout_loss"}


def preload(recipes: list[ResolvedRecipe]) -> None:
    """Build everything once, for runs of these lengths; children find it in the memory they inherit."""
    world = World(0, 1, torch.device("cpu"))
    setups = {recipe.recipe.max_steps: set_up(recipe, world, Observer(), None) for recipe in recipes}
    setup = setups[recipes[0].recipe.max_steps]
    base, facts = training.load_trainable(setup), training.describe_environment()
    instead: dict[str, Callable[..., Any]] = {
        "set_up": lambda resolved, *_: dataclasses.replace(setups[resolved.recipe.max_steps], resolved=resolved),
        "load_trainable": lambda *_: base,
        "describe_environment": lambda: facts,
    }
    for name, value in instead.items():
        assert hasattr(training, name), f"train/run.py no longer uses {name}"
        setattr(training, name, value)
    checkpoint.SHARD_BYTES = 30_000  # two files even for this model
    run_folder.HEARTBEAT = 3600.0  # on a slow machine its writes would come between those that are counted


class Teller(Observer):
    """Tells the parent what happened, through a pipe; a line is whole or not there."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def tell(self, event: str, value: Any) -> None:
        os.write(self.pipe, (json.dumps([event, value]) + "\n").encode())

    def message(self, text: str) -> None:
        self.tell("message", text)

    def start(self, step: int, num_steps: int, samples_seen: int, total_samples: int) -> None:
        self.tell("start", step)

    def step(self, record: dict[str, Any]) -> None:
        self.tell("step", record["step"])

    def saved(self, folder: Path) -> None:
        self.tell("saved", int(folder.name.removeprefix(checkpoint.PREFIX)))


class Child:
    """A forked process that trains until it is done, fails or is killed."""

    def __init__(
        self, recipe: ResolvedRecipe, fault: Fault | None = None, before: Callable[[], None] = lambda: None
    ) -> None:
        self.born = time.monotonic()
        self.pipe, theirs = os.pipe()
        self.text = b""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            self._train(recipe, fault, before, Teller(theirs))
        os.close(theirs)

    def _train(
        self, recipe: ResolvedRecipe, fault: Fault | None, before: Callable[[], None], teller: Teller
    ) -> NoReturn:
        code = 99
        try:
            disk.calls, disk.fault = 0, fault
            before()
            training.train(recipe, teller)
            code = 0
        except SengiError as error:
            teller.tell("error", [type(error).__name__, str(error)])
            code = error.exit_code
        except BaseException:
            teller.tell("traceback", traceback.format_exc()[-3000:])
        finally:
            disk.fault = None
            if isinstance(fault, FaultAt):
                teller.tell("calls", fault.calls)
            os._exit(code)

    def wait_for(self, event: str, times: int = 1) -> None:
        """Return when the child told of that event so many times, or is gone."""
        while self.text.count(f'["{event}"'.encode()) < times and self._read(None):
            pass

    def _read(self, timeout: float | None) -> bool:
        if not select.select([self.pipe], [], [], timeout)[0]:
            return True
        piece = os.read(self.pipe, 65536)
        self.text += piece
        return bool(piece)

    def kill_after(self, seconds: float) -> None:
        """kill -9, unless it ended before."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and self._read(left):
            pass
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> tuple[int, list[list[Any]]]:
        """Wait for it; returns exit code (-9 if killed) and what it told."""
        while self._read(None):
            pass
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), [json.loads(line) for line in self.text.splitlines()]


class Server:
    """The jobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        harness.write_small_model(root / "model")
        self.resolved = resolve_recipe(harness.write_recipe(root))
        wild = {"learning_rate": 0.3, "lr_scheduler_type": "constant"}  # the last checkpoint of a phase is not its best
        self.phased = resolve_recipe(harness.write_recipe(root, strategy="phased", phases=PHASES, eval_steps=2, **wild))
        preload([self.recipe("preload", steps) for steps in (STEPS, crash_faults.STEP, PHASED)])
        self.unbroken: dict[int, Path] = {}
        self.startup = self.step_seconds = self.save_seconds = 0.1

    def recipe(self, name: str, steps: int, keep: int = 1) -> ResolvedRecipe:
        """The recipe with ``root/name/run`` as its folder; runs share the last part, it is in the model card."""
        values = {"output_dir": str(self.root / name / "run"), "max_steps": steps, "save_total_limit": keep}
        resolved = self.phased if steps == PHASED else self.resolved
        return dataclasses.replace(resolved, recipe=resolved.recipe.model_copy(update=values))

    def two_checkpoints(self) -> str:
        """A finished run that kept its last two checkpoints."""
        code, told = Child(self.recipe("two", crash_faults.STEP, keep=2)).end()
        assert code == 0, told
        return str(self.root / "two" / "run")

    def reference(self, steps: int) -> Path:
        """An unbroken run of that many steps, made once."""
        if steps not in self.unbroken:
            child = Child(self.recipe(f"unbroken-{steps}", steps))
            child.wait_for("start")
            self.startup, started, saves = time.monotonic() - child.born, time.monotonic(), []
            for step in range(1, steps + 1):
                child.wait_for("step", step)
                saves.append(time.monotonic())
                child.wait_for("saved", step)
                saves[-1] = time.monotonic() - saves[-1]
            self.step_seconds, self.save_seconds = (time.monotonic() - started) / steps, sorted(saves)[steps // 2]
            code, told = child.end()
            assert code == 0, told
            self.unbroken[steps] = self.root / f"unbroken-{steps}" / "run"
        return self.unbroken[steps]

    def kills(self, seed: int, count: int, steps: int = STEPS) -> dict[str, Any]:
        """Kill children until ``count`` died of it; a run that ends is compared and the next one begins."""
        unbroken = self.reference(steps)
        draw, began = random.Random(seed), time.monotonic()
        result: dict[str, Any] = {"kills": 0, "in_save": 0, "in_removal": 0, "in_start": 0, "torn": 0, "runs": 0}
        result |= {"acknowledged": 0, "problems": []}
        name = ""
        while result["kills"] < count or name:
            if not name:
                name, acknowledged = f"kills-{steps}-{seed}-{result['runs']}", 0
                run = self.root / name / "run"
            child = Child(self.recipe(name, steps))
            if result["kills"] < count:
                aim = draw.random()
                if aim < 0.15:  # while it starts or resumes
                    child.kill_after(draw.uniform(0, 1.2 * self.startup))
                elif aim < 0.35:  # at any moment of its work
                    child.wait_for("start")
                    self.startup = min(self.startup, time.monotonic() - child.born)  # a slow first one aims too late
                    child.kill_after(draw.uniform(0, 3.5 * self.step_seconds))
                else:  # after a step was logged: the moments of sync, save, removal and status
                    child.wait_for("step", draw.randint(1, 2))
                    child.kill_after(draw.uniform(0, 1.2 * self.save_seconds))
            code, told = child.end()
            saved = [value for event, value in told if event == "saved"]
            acknowledged = max([acknowledged, *saved])
            result["acknowledged"] += len(saved)
            result["torn"] += sum("half-written line" in str(value) for event, value in told if event == "message")
            if code == -signal.SIGKILL:
                result["kills"] += 1
                names = [path.name for path in run.iterdir()] if run.exists() else []
                result["in_save"] += any(n.startswith(f".tmp-{checkpoint.PREFIX}") for n in names)
                result["in_removal"] += any(n.startswith(".trash-") for n in names)
                result["in_start"] += not any(event == "start" for event, _ in told)
                good = crash_faults.newest_good(run) if run.exists() else 0
                if good < acknowledged:
                    result["problems"].append(f"kill {result['kills']}: step {acknowledged} was saved, {good} is there")
            elif code == 0:
                result["problems"] += [f"{name}: {text}" for text in harness.differences(run, unbroken, steps)]
                result["runs"] += 1
                shutil.rmtree(run.parent)
                name = ""
            else:
                result["problems"].append(f"{name}: exit {code}: {told[-2:]}")
                break
        return result | {"seconds": round(time.monotonic() - began, 1)}

    def phased_kills(self, seed: int, count: int) -> dict[str, Any]:
        """The same with a run in phases, and the steps that it chose unbroken."""
        result = self.kills(seed, count, PHASED)
        text = (self.reference(PHASED) / "phases.json").read_text()
        chosen = [(one["chosen_step"], one["last_step"]) for one in json.loads(text)["phases"]]
        return result | {"chosen": chosen}

    def faults(self, mode: str, part: int, parts: int) -> dict[str, Any]:
        """A fault at call N of a session, for N = part, part + parts, ... until the session has no call N.

        Short writes only where call N is a write.
        """
        began, unbroken, base = time.monotonic(), self.reference(crash_faults.STEP), self._fault_base()
        calls = self._calls_of_a_session(base)
        result: dict[str, Any] = {"mode": mode, "calls": len(calls), "cases": 0, "problems": []}
        for number in range(part, len(calls) + 1, parts):
            if mode == "short" and calls[number - 1] != "write":
                continue
            name = f"fault-{mode}-{number}"
            run = self.root / name / "run"
            shutil.copytree(base, run)
            fault = FaultAt(mode, number)
            code, told = Child(self.recipe(name, crash_faults.STEP), fault).end()
            originals = {crash_faults.STEP - 1: base, crash_faults.STEP: unbroken}
            problems = crash_faults.judge(run, originals, unbroken, fault, code, told, begun=True)
            code, told = Child(self.recipe(name, crash_faults.STEP)).end()
            problems += crash_faults.judge_end(run, unbroken, code, told, corrupt=1)
            result["problems"] += [f"{mode} at call {number} ({calls[number - 1]}): {text}" for text in problems]
            result["cases"] += 1
            shutil.rmtree(run.parent)
        return result | {"seconds": round(time.monotonic() - began, 1)}

    def background_faults(self, mode: str, first: int, stride: int) -> dict[str, Any]:
        """A fault at every ``stride``-th call of a run from its start, whose checkpoints are written while it trains.

        Which call is call N depends on how the writing thread and the training take turns: each case is a new one.
        """
        all_kept = self.root / "all" / "run"
        if not all_kept.exists():
            code, told = Child(self.recipe("all", crash_faults.STEP, keep=crash_faults.STEP)).end()
            assert code == 0, told
        result: dict[str, Any] = {"mode": mode, "cases": 0, "while_training": 0, "problems": []}
        number, code = first, 1
        while True:
            name = f"background-{mode}-{number}"
            run, fault = self.root / name / "run", FaultAt(mode, number)
            code, told = Child(self.recipe(name, crash_faults.STEP), fault).end()
            if code == 0 and not dict(told)["calls"]:
                shutil.rmtree(run.parent)
                return result  # the run has no call N
            begun = any(event == "saved" for event, _ in told)
            originals = dict.fromkeys(range(1, crash_faults.STEP + 1), all_kept)
            problems = crash_faults.judge(run, originals, all_kept, fault, code, told, begun)
            last_step = max([0, *(value for event, value in told if event == "step")])
            result["while_training"] += 0 < last_step < crash_faults.STEP
            code, told = Child(self.recipe(name, crash_faults.STEP)).end()
            problems += crash_faults.judge_end(run, all_kept, code, told, corrupt=0)
            result["problems"] += [f"{mode} at call {number}: {text}" for text in problems]
            result["cases"] += 1
            shutil.rmtree(run.parent)
            number += stride

    def lost_rank(self, verb: str, victim: int, port: int) -> dict[str, Any]:
        """Two processes of which one is lost while they train."""
        return crash_ranks.lose(self, Child, verb, victim, port)

    def _calls_of_a_session(self, base: Path) -> list[str]:
        """The storage calls of a session from ``base`` that meets no fault, by name."""
        run = self.root / "count" / "run"
        shutil.copytree(base, run)
        code, told = Child(self.recipe("count", crash_faults.STEP), FaultAt("none", 0)).end()
        assert code == 0, told
        shutil.rmtree(run.parent)
        return [name for name, _ in dict(told)["calls"]]

    def _fault_base(self) -> Path:
        folder = self.root / "fault-base"
        if not folder.exists():
            unbroken = self.reference(crash_faults.STEP)

            def train(run: Path, fault: Fault) -> Any:
                return Child(self.recipe(run.parent.name, crash_faults.STEP), fault).end()

            crash_faults.make_base(folder, train, unbroken)
        return folder / "run"


def main() -> None:
    """Answer jobs from standard input, a JSON line each, until it closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may write to the pipe of answers
    torch.set_num_threads(1)
    server = Server(Path(sys.argv[1]))
    gc.freeze()  # else each child's collector would touch, and so copy, every inherited page
    for line in sys.stdin:
        job, arguments = json.loads(line)
        try:
            answer = [getattr(server, job)(**arguments), ""]
        except Exception:  # the next test still needs this server
            answer = [None, traceback.format_exc()]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
