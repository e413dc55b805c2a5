"""Studies on a Ray cluster: the same scores as anywhere, whatever dies; clear words where there is no cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.train import crash_harness

from sengi.errors import InputError
from sengi.study.executor import executor_for
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


@pytest.mark.ray
def test_an_address_where_nobody_answers_is_an_error() -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"no Ray cluster answers there .*ray start --head"):
        executor_for(Executor(kind="ray", address="127.0.0.1:1"))


# Two simulated machines of one core each; a training is killed with -9 after its first step and goes on elsewhere.
@pytest.mark.ray
def test_two_machines_one_lost_training_the_same_scores(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    space = {"learning_rate": [1e-2, 1e-3], "weight_decay": [0.0, 0.1]}
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
