"""Alarms in real runs: an absurd rate raises one, a healthy run none, and the training never feels it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import warm
from tests.model.tiny_folder import write_tiny_folder
from tests.train.crash_harness import content, dynamics, write_recipe

from sengi.cli.app import run as command
from sengi.errors import StoppedByAlarm
from sengi.recipe_sources import resolve_recipe
from sengi.train import step
from sengi.train.alarm_watch import AlarmWatch
from sengi.train.alarms import Alarm, find_alarms
from sengi.train.distributed import World
from sengi.train.observer import Observer
from sengi.train.run import train
from sengi.train.run_folder import RunFolder

STEPS = 24
RUN = {
    "max_steps": STEPS,
    "save_steps": 1000,
    "warmup_steps": 0,
    "lr_scheduler_type": "constant",
    "effective_batch_size": 6,
    "max_tokens_per_device": 256,
    "eval_data": [],
}
ABSURD = {"learning_rate": 1.0}


class Listener(Observer):
    def __init__(self) -> None:
        self.alarms: list[Alarm] = []
        self.said: list[str] = []

    def alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alarm-runs")
    write_tiny_folder(folder / "model")
    return write_recipe(folder, **RUN)


def go(recipe: Path, out: Path, **values: Any) -> Listener:
    listener = Listener()
    train(resolve_recipe(recipe, values={"output_dir": str(out), **values}), listener)
    return listener


def test_a_healthy_run_raises_none_and_on_alarm_changes_no_bit(recipe: Path, tmp_path: Path) -> None:
    assert go(recipe, tmp_path / "warn").alarms == []
    assert go(recipe, tmp_path / "stop", on_alarm="stop").alarms == []
    assert dynamics(tmp_path / "warn") == dynamics(tmp_path / "stop")
    ours, theirs = (content(tmp_path / name / f"checkpoint-{STEPS}") for name in ("warn", "stop"))
    assert ours["model.safetensors"] == theirs["model.safetensors"]


def test_an_absurd_rate_stops_resumably_and_is_not_stopped_twice(recipe: Path, tmp_path: Path) -> None:
    told = go(recipe, tmp_path / "warn", **ABSURD).alarms
    assert told[0].kind == "diverging"
    lines = [json.loads(line) for line in (tmp_path / "warn" / "dynamics.jsonl").read_text().splitlines()]
    assert find_alarms(lines, STEPS) == told
    # stopped at the first alarm, with its sentence; the state is saved
    with pytest.raises(StoppedByAlarm, match="stopped by an alarm, state saved: diverging at step") as caught:
        go(recipe, tmp_path / "stop", on_alarm="stop", **ABSURD)
    assert caught.value.exit_code == 3
    status = json.loads((tmp_path / "stop" / "status.json").read_text())
    assert (status["state"], status["alarm"]["step"]) == ("stopped", told[0].step)
    assert (tmp_path / "stop" / f"checkpoint-{told[0].step}").is_dir()
    # the same call again goes on, with the same losses as a run that was never stopped
    left = told[1:]
    for alarm in left:  # another kind of alarm stops again
        with pytest.raises(StoppedByAlarm, match=f"{alarm.kind} at step {alarm.step}"):
            go(recipe, tmp_path / "stop", on_alarm="stop", **ABSURD)
    again = go(recipe, tmp_path / "stop", on_alarm="stop", **ABSURD)
    assert again.alarms == []
    assert any(text.startswith("an earlier alarm of this run: diverging at step") for text in again.said)
    assert dynamics(tmp_path / "stop") == dynamics(tmp_path / "warn")
    assert json.loads((tmp_path / "stop" / "status.json").read_text())["state"] == "finished"


def test_the_command_says_it_in_one_line_and_exits_with_3(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    values = {"output_dir": tmp_path / "run", "on_alarm": "stop", **ABSURD}
    sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    assert command(["train", str(recipe), *sets]) == 3
    text = capsys.readouterr().err
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "stopped by an alarm, state saved: diverging at step" in error
    assert "run the same command again" in error
    assert sum(line.startswith("alarm: diverging at step") for line in text.splitlines()) == 1


def test_a_loss_that_is_not_finite_leaves_its_alarm_in_the_status(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    norm, calls = step.gradient_norm, []

    def broken(*arguments: Any) -> Any:
        calls.append(1)
        return norm(*arguments) * (float("nan") if len(calls) > 6 else 1)

    monkeypatch.setattr(step, "gradient_norm", broken)
    assert command(["train", str(recipe), "--set", f"output_dir={tmp_path / 'run'}"]) == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    alarm = Alarm(**status["alarm"])
    assert alarm.kind == "not finite"
    assert "gradient norm is nan" in alarm.seen
    assert "train.jsonl:" in alarm.cure
    assert f"step {alarm.step}: {alarm.seen}; {alarm.cause}; {alarm.cure}" in capsys.readouterr().err


def test_the_other_ranks_save_and_leave_without_a_word(tmp_path: Path) -> None:
    class Second(World):
        def any(self, flag: bool) -> bool:
            return True  # rank 0 votes for it

    saved: list[str] = []
    watch = AlarmWatch(STEPS, "stop", Second(1, 2, torch.device("cpu")), RunFolder(tmp_path), Listener())
    with pytest.raises(StoppedByAlarm) as caught:
        watch.stop_if_due(lambda: saved.append("saved"))
    assert saved == ["saved"]
    assert caught.value.elsewhere
    warned = AlarmWatch(STEPS, "warn", Second(1, 2, torch.device("cpu")), RunFolder(tmp_path), Listener())
    warned.stop_if_due(lambda: saved.append("never"))
    assert saved == ["saved"]


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(recipe: Path, tmp_path: Path) -> None:
    out, sets = tmp_path / "run", [f"{key}={value}" for key, value in {**ABSURD, "on_alarm": "stop"}.items()]
    sets.append(f"output_dir={out}")
    command = ["-m", "sengi", "train", str(recipe), *(part for item in sets for part in ("--set", item))]
    first = warm.run(command, ranks=2)
    assert first.returncode == 3
    assert first.stderr.count("stopped by an alarm") == 1
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["alarm"]["kind"]) == ("stopped", "diverging")
    assert warm.run(command, ranks=2).returncode == 0
    assert len(dynamics(out)) == STEPS
