"""Studies on a Ray cluster: the same scores as anywhere, whatever dies; clear words where there is no cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.train import crash_harness

from sengi.errors import InputError
from sengi.study.executor import executor_for
from sengi.study.run_executor import Ended
from sengi.study.space import Run
from sengi.study.study_file import Executor, read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import write_study
from test_study_kills import results, studies

PROGRAM = Path(__file__).with_name("ray_study_program.py")


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'sengi\[ray\]'"):
        executor_for(Executor(kind="ray"))


def test_keys_that_only_ray_reads_are_refused_elsewhere(tmp_path: Path) -> None:
    path = write_study(tmp_path, executor={"kind": "local", "address": "10.0.0.1:6379"})
    with pytest.raises(InputError, match=r"address is 10\.0\.0\.1:6379, but only Ray reads it; set kind: ray"):
        read_study(path)


class FakeRay:
    """What the executor asks of Ray, over machines that are only named; its tasks end when the test says so."""

    def __init__(self, *nodes: dict[str, float], lost: bool = False) -> None:
        self.known = [{"Alive": True, "Resources": node} for node in nodes]
        self.known += [{"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}] if lost else []
        self.over: dict[object, tuple[int, str]] = {}
        self.tasks: list[object] = []

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return self.known

    def remote(self, **options: Any) -> Any:
        return lambda function: SimpleNamespace(remote=self._begin)

    def _begin(self, *arguments: Any) -> object:
        self.tasks.append(object())
        return self.tasks[-1]

    def wait(self, tasks: list[object], num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        return [task for task in tasks if task in self.over], [task for task in tasks if task not in self.over]

    def get(self, task: object) -> tuple[int, str]:
        return self.over[task]


BIG, SMALL = {"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "asked", "room"),
    [
        ([BIG], {}, 4),
        ([BIG], {"cpus_per_process": 8}, 2),  # the cores are fewer than the GPUs
        ([BIG, SMALL], {"cpus_per_process": 4}, 5),
        ([BIG, SMALL], {"cpus_per_process": 4, "processes_per_run": 5}, 1),  # one run over two machines
        ([{"CPU": 6.0}, {"CPU": 6.0}], {"cpus_per_process": 4}, 2),  # 12 cores, but no machine takes two processes
        ([BIG, {"CPU": 64.0}], {"cpus_per_process": 8}, 2),  # a machine without a GPU takes none
    ],
)
def test_auto_is_as_many_runs_as_the_machines_take(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], asked: dict[str, int], room: int
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay(*nodes, lost=True))  # type: ignore[arg-type]
    assert executor_for(Executor(kind="ray", **asked)).free == room


@pytest.mark.parametrize(
    ("nodes", "asked", "words"),
    [
        ([BIG], {"cpus_per_process": 32}, "is 1, each with 32 CPUs and a GPU of one machine"),
        ([{"CPU": 4.0}] * 4, {"cpus_per_process": 8}, "has room for 0 (4 with 4 CPUs, 0 GPUs)"),
        ([BIG, SMALL], {"processes_per_run": 9}, "has room for 8 (1 with 16 CPUs, 4 GPUs; 1 with 4 CPUs, 4 GPUs)"),
    ],
)
def test_a_run_that_no_machine_can_ever_take_is_refused(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], asked: dict[str, int], words: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay(*nodes))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        executor_for(Executor(kind="ray", **asked))
    assert "\n" not in str(caught.value)


def test_a_run_is_asked_to_stop_by_a_file_that_its_next_start_takes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay(BIG)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    executor, run = executor_for(Executor(kind="ray")), Run("001-s1", 1, 1, {}, tmp_path)
    executor.stop(run)
    assert not (tmp_path / "stop.json").exists()  # it does not run
    executor.start(run)
    assert executor.ended() == {}
    executor.stop(run)
    assert (tmp_path / "stop.json").exists()
    ray.over[ray.tasks[0]] = (3, "stopped by stop.json")
    assert executor.ended() == {"001-s1": Ended(3, "stopped by stop.json")}
    assert executor.free == 4
    executor.start(run)
    assert not (tmp_path / "stop.json").exists()


@pytest.mark.ray
def test_an_address_where_nobody_answers_is_an_error() -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"no Ray cluster answers there .*ray start --head"):
        executor_for(Executor(kind="ray", address="127.0.0.1:1"))


# Two simulated machines of one core each; a training is killed with -9 after its first step and goes on elsewhere.
@pytest.mark.ray
def test_two_machines_one_lost_training_the_same_scores(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    space = {"learning_rate": [1e-2, 1e-3, 3e-3], "weight_decay": [0.0, 0.1]}  # the six runs of test_study_kills.py
    unbroken, killed = studies(tmp_path, space, 240)
    environment = crash_harness.environment(tmp_path)
    alone = [sys.executable, "-m", "sengi", "study", str(unbroken)]
    done = subprocess.run(alone, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    killed.write_text(json.dumps(json.loads(killed.read_text()) | {"executor": {"kind": "ray"}}))
    values = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    values |= {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, str(PROGRAM), str(killed)]
    done = subprocess.run(command, env=environment | values, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["killed"]) == 1
    assert told["most"] == 2
    assert results(tmp_path / "killed") == results(tmp_path / "unbroken")
    for run in (tmp_path / "killed/runs").iterdir():
        assert crash_harness.dynamics(run) == crash_harness.dynamics(tmp_path / "unbroken/runs" / run.name)
