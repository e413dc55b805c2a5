"""The Ray launcher shares the entry of torchrun: same run folder, same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from crash_harness import dynamics, environment, write_recipe, write_small_model

from sengi.errors import InputError
from sengi.recipe_sources import resolve_recipe
from sengi.train.ray_launcher import RayJob, train_on_ray
from sengi.train.run import train

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray" / "train.py"


def test_a_relative_folder_and_a_missing_ray_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve_recipe(write_recipe(tmp_path, output_dir="runs/here"))
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(InputError, match=r"pip install 'sengi\[ray\]'"):
        train_on_ray(RayJob(resolved, 2, gpus=False))


@pytest.mark.ray
def test_two_workers_train_as_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("SENGI_CACHE", str(tmp_path / "cache"))
    write_small_model(tmp_path / "model")
    recipe = write_recipe(tmp_path, max_steps=6)
    values = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    values |= {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, str(EXAMPLE), str(recipe), "--workers", "2"]
    done = subprocess.run(command, env=environment(tmp_path) | values, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["world_size"] == 2
    train(resolve_recipe(recipe, values={"output_dir": str(tmp_path / "alone")}))
    ours, theirs = dynamics(tmp_path / "run"), dynamics(tmp_path / "alone")
    assert [line["samples_sha256"] for line in ours] == [line["samples_sha256"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-4)
    with pytest.raises(InputError, match="give an absolute path that all machines share"):
        train_on_ray(RayJob(resolve_recipe(recipe, values={"output_dir": "runs/here"}), 2, gpus=False))
