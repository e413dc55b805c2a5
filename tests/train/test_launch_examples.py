"""The files in examples/ for launchers: they parse, agree with themselves, and stop a run as they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sengi.recipe_sources import resolve_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = [*sorted(EXAMPLES.glob("torchrun/*.sh")), EXAMPLES / "slurm" / "train.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_run_train(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "-m torch.distributed.run" in script.read_text()
    assert "-m sengi train" in script.read_text()


def executable(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


# Slurm's words stand for Slurm: srun starts the command once a node, scancel --signal passes a signal on to it.
@pytest.mark.parametrize(("asked", "code"), [(True, 3), (False, 0), (False, 7)])
def test_slurm_job_stops_cleanly_and_goes_back_into_the_queue(tmp_path: Path, asked: bool, code: int) -> None:
    executable(tmp_path / "scontrol", f'[ "$1" = show ] && echo node1 && echo node2 || echo "$*" >> {tmp_path}/said\n')
    tell = f"echo $$ > {tmp_path}/step; echo $SRUN_CPUS_PER_TASK > {tmp_path}/cpus"
    executable(tmp_path / "srun", f'shift; {tell}; exec "$@"\n')
    executable(tmp_path / "scancel", f'[ "$1" = --signal=TERM ] && kill -TERM "$(cat {tmp_path}/step)"\n')
    wait = "while true; do sleep 0.02; done" if asked else f"exit {code}"
    executable(
        tmp_path / "python", f'echo "$@" > {tmp_path}/command; trap "exit 3" TERM; echo > {tmp_path}/up; {wait}\n'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "python")}
    environment |= {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    environment["SLURM_CPUS_PER_TASK"] = "64"
    job = subprocess.Popen(["bash", str(EXAMPLES / "slurm" / "train.sbatch"), "recipe.yaml"], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if asked:
        job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == code
    assert (tmp_path / "cpus").read_text() == "64\n"
    command = (tmp_path / "command").read_text()
    assert "--nnodes 2 " in command
    assert "--rdzv-endpoint node1:20041 " in command
    assert command.endswith("-m sengi train recipe.yaml\n")
    said = (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""
    assert said == ("requeue 41\n" if asked else "")  # a job that is done or failed does not start over


def test_kubernetes_job_agrees_with_itself() -> None:
    text = (EXAMPLES / "kubernetes" / "train.yaml").read_text()
    service, claim, files, job = list(yaml.safe_load_all(text))
    spec: dict[str, Any] = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    variables = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    assert spec["parallelism"] == spec["completions"] == int(variables["NODES"])
    assert spec["completionMode"] == "Indexed"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert service["metadata"]["name"] == pod["subdomain"]
    assert variables["HEAD"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert variables["PROCESSES"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts == volumes.keys()
    assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert volumes["recipe"]["configMap"]["name"] == files["metadata"]["name"]
    # the image holds the script, and the script asks for nothing that the manifest does not set
    script, recipe = container["command"]
    copied = (EXAMPLES / "kubernetes" / "Dockerfile").read_text()
    assert "COPY . /sengi\n" in copied
    text = (EXAMPLES.parent / Path(script).relative_to("/sengi")).read_text()
    assert set(re.findall(r"\$\{(\w+):\?", text)) <= variables.keys()
    mounted = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    values = resolve_recipe(values=yaml.safe_load(files["data"][Path(recipe).name])).recipe
    assert Path(recipe).parent == mounted["recipe"]
    assert Path(values.output_dir).is_relative_to(mounted["runs"])
    assert Path(variables["SENGI_CACHE"]).is_relative_to(mounted["runs"])
