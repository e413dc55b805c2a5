"""A study that is killed and started again ends as one that was not, and does nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests import warm
from tests.train import crash_harness

HERE = Path(__file__).parent


def studies(folder: Path, space: dict[str, Any], budget: int, **more: Any) -> list[Path]:
    """Two equal studies in two folders, over one model and one token store; ``more`` keys of their files."""
    crash_harness.write_small_model(folder / "model")
    recipe = {
        "model_name_or_path": str(folder / "model"),
        "data": [str(crash_harness.write_rows(folder / "train.jsonl", 0, 37))],
        "eval_data": [str(crash_harness.write_rows(folder / "heldout.jsonl", 500, 4))],
        "max_tokens_per_device": 64,
        "save_steps": 1,
        "dtype": "float32",
        "effective_batch_size": 4,
    }
    paths = []
    for name in ("unbroken", "killed"):
        values = {"recipe": recipe, "output_dir": str(folder / name), "space": space, "budget_samples": budget}
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(json.dumps(values | {"executor": {"parallel": 2}} | more))
    return paths


def results(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "study.json").read_text())
    assert summary["state"] == "finished"
    return {
        row["name"]: (row["state"], row["score"], row["interval"], row["samples_seen"], row["loss"], row["grad_norm"])
        for row in summary["runs"]
    }


def killed_sessions(folder: Path, kills: int, seed: int, paths: list[Path]) -> list[dict[str, Any]]:
    """Run two studies, one of them killed; what its sessions did."""
    program = [str(HERE / "study_program.py"), str(kills), str(seed), *map(str, paths)]
    done = warm.run(program, env=crash_harness.environment(folder), timeout=1000)
    assert done.returncode == 0, done.stderr[-3000:]
    unbroken, killed = json.loads(done.stdout.splitlines()[-1])
    assert [session["code"] for session in unbroken] == [0]
    assert killed[-1]["code"] == 0, done.stderr[-3000:]
    return list(killed)


def kill_and_compare(folder: Path, kills: int, seed: int, space: dict[str, Any], budget: int) -> int:
    """Run both and compare them; how often a session died."""
    killed = killed_sessions(folder, kills, seed, studies(folder, space, budget))
    assert results(folder / "killed") == results(folder / "unbroken")
    # a run that was finished when a session died is never started again
    for number, session in enumerate(killed[:-1]):
        later = [name for other in killed[number + 1 :] for name in other["started"]]
        assert not set(session["finished"]) & set(later)
    # all runs of both studies, killed or not, read one store of the training data and one of the held-out data
    assert len(list((folder / "cache" / "tokens").iterdir())) == 2
    # and every run has each of its steps once
    for run in (folder / "killed/runs").iterdir():
        assert [line["step"] for line in crash_harness.dynamics(run)] == list(range(1, budget // 4 + 1))
        assert crash_harness.dynamics(run) == crash_harness.dynamics(folder / "unbroken/runs" / run.name)
    return sum(session["code"] == -9 for session in killed)


def test_six_runs_killed_three_times_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    space = {"learning_rate": [1e-2, 1e-3, 3e-3], "weight_decay": [0.0, 0.1]}
    assert kill_and_compare(tmp_path, 3, crash_harness.seeded(5), space, 24) == 3


def test_runs_condemned_by_a_study_that_was_killed_stay_condemned(tmp_path: Path) -> None:
    early = {"mode": "terminate", "check_samples": 4, "early_samples": 8}
    paths = studies(tmp_path, {"learning_rate": [1e-3, 1e-2]}, 80, early_termination=early)
    killed = killed_sessions(tmp_path, 1, 0, paths)
    # the first session died between the verdict and the end of the training that it was about
    assert [session["code"] for session in killed] == [-9, 0]
    assert [{Path(name).name for name in session["started"]} for session in killed] == [
        {"001-s42", "002-s42"},
        {"001-s42"},
    ]
    calm, wild = results(tmp_path / "killed").values()
    assert calm == results(tmp_path / "unbroken")["001-s42"]
    assert calm[0] == "finished"
    assert wild[0] == results(tmp_path / "unbroken")["002-s42"][0] == "stopped"
    assert wild[3] < 80


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_many_kills(tmp_path: Path, seed: int) -> None:
    space = {"learning_rate": [1e-2, 1e-3, 3e-3], "weight_decay": [0.0, 0.1]}
    assert kill_and_compare(tmp_path, 12, crash_harness.seeded(100 + seed), space, 40) > 3


def test_a_run_that_always_crashes_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    # real processes: no sample fits into 8 tokens, which only the training itself finds out
    path = studies(tmp_path, {"max_tokens_per_device": [8, 64]}, 12)[0]
    command = [sys.executable, "-m", "sengi", "study", str(path)]
    environment = crash_harness.environment(tmp_path)
    for _ in range(2):  # asked again, it tries no finished run again and says the same
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        summary = json.loads((tmp_path / "unbroken/study.json").read_text())
        crashed, whole = summary["runs"]
        assert (crashed["state"], crashed["score"]) == ("failed", None)
        assert "max_tokens_per_device" in crashed["reason"]
        assert "\n" not in crashed["reason"]
        assert (whole["state"], whole["samples_seen"]) == ("finished", 12)
        assert "Traceback" not in done.stdout + done.stderr
        assert done.returncode == 1


def test_the_command_trains_stops_and_continues(tmp_path: Path) -> None:
    # the shipped executor: real processes, a stop from outside, and a second call
    path = studies(tmp_path, {"learning_rate": [1e-2]}, 12)[0]
    environment = crash_harness.environment(tmp_path) | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "sengi", "study", str(path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        log = tmp_path / "unbroken/runs/001-s42/train.log"
        assert first.stderr is not None
        assert "run 001-s42 running" in first.stderr.readline()
        assert log.exists()
        first.terminate()
        out, err = first.communicate(timeout=300)
    assert first.returncode == 3, out + err
    assert "every run saved its state; run the same command to continue" in err
    # it was still importing, where no handler catches the signal: it died of it, and has not failed
    assert [row["state"] for row in json.loads((log.parents[2] / "study.json").read_text())["runs"]] == ["waiting"]
    assert "failed" not in err
    done = warm.run(command[1:], env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run 001-s42 finished at 12 samples, score" in done.stderr
    assert results(tmp_path / "unbroken")["001-s42"][0] == "finished"
    assert os.path.getsize(log) > 0


@pytest.mark.slow
def test_runs_of_two_processes_stop_at_any_moment_and_continue(tmp_path: Path) -> None:
    more = {"executor": {"parallel": 1, "processes_per_run": 2}}
    path = studies(tmp_path, {"learning_rate": [1e-2]}, 800, **more)[0]
    environment = crash_harness.environment(tmp_path) | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "sengi", "study", str(path)]
    run = tmp_path / "unbroken/runs/001-s42"
    # torchrun itself starts; its two processes start; they train
    for moment in (run / "train.log", None, run / "dynamics.jsonl"):
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as session:
            while session.poll() is None and not (_trained(moment) if moment else _children(session.pid) >= 3):
                time.sleep(0.01)
            session.terminate()
            err = session.communicate(timeout=300)[1]
        assert session.returncode == 3, err
        assert "failed" not in err
        row = json.loads((tmp_path / "unbroken/study.json").read_text())["runs"][0]
        assert (row["state"], row["reason"]) == ("waiting", ""), (run / "train.log").read_text()[-3000:]
    assert 0 < row["samples_seen"] < 800
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path / "unbroken")["001-s42"][0] == "finished"
    assert [line["step"] for line in crash_harness.dynamics(run)] == list(range(1, 201))
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2


def _trained(path: Path) -> bool:
    return path.exists() and (path.suffix == ".log" or path.stat().st_size > 0)


def _children(pid: int) -> int:
    """Processes below one."""
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    below = [int(child) for child in tasks.read_text().split()] if tasks.exists() else []
    return len(below) + sum(_children(child) for child in below)
