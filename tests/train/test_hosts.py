"""Two machines, as two network namespaces with a cable between them: torchrun, rendezvous, gloo, one run folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_harness import dynamics, environment, write_recipe, write_small_model

from sengi.recipe_sources import resolve_recipe
from sengi.train.run import train

SCRIPT = Path(__file__).parents[2] / "examples" / "torchrun" / "many-machines.sh"
ADDRESSES = ("10.199.77.1", "10.199.77.2")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Hosts:
    """Two namespaces; each has one end of a cable."""

    def __init__(self) -> None:
        self.names = [f"sengi-{os.getpid()}-{n}" for n in (0, 1)]
        self.processes: list[subprocess.Popen[bytes]] = []

    def connect(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", self.names[1])
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")

    def start(self, host: int, recipe: Path, output: Path, **more: str) -> None:
        """The example script on one of the hosts."""
        values = {"HEAD": ADDRESSES[0], "NODES": "2", "NODE_RANK": str(host), "ADDRESS": ADDRESSES[host]}
        values |= {"PROCESSES": "1", "PYTHON": sys.executable, "GLOO_SOCKET_IFNAME": "cable", **more}
        with output.open("wb") as file:
            command = ["ip", "netns", "exec", self.names[host], "bash", str(SCRIPT), str(recipe)]
            self.processes.append(
                subprocess.Popen(
                    command, env=environment(recipe.parent) | values, stdout=file, stderr=file, start_new_session=True
                )
            )

    def remove(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def children(pid: int) -> list[int]:
    """Child processes, as Linux tells them."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether the process runs: neither gone nor waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip (Debian package iproute2)")
    hosts = Hosts()
    try:
        hosts.connect()
    except OSError as error:
        hosts.remove()
        pytest.skip(f"needs the right to make network namespaces: {error}")
    yield hosts
    hosts.remove()


# Rule: two machines train what one process trains. Rule: when the cable is cut both stop, and the one that writes the
# status names the rank it lost; the run then goes on from its last checkpoint, here on one process.
@pytest.mark.slow
def test_two_hosts_train_as_one_process_and_survive_a_cut_cable(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENGI_CACHE", str(tmp_path / "cache"))
    write_small_model(tmp_path / "model")
    recipe = write_recipe(tmp_path, max_steps=400, lr_scheduler_type="constant", save_steps=5, save_total_limit=2)
    outputs = [tmp_path / f"host-{host}.txt" for host in (0, 1)]
    for host in (0, 1):
        hosts.start(host, recipe, outputs[host], SENGI_RANK_TIMEOUT="5")
    run, log = tmp_path / "run", tmp_path / "run" / "dynamics.jsonl"
    deadline = time.monotonic() + 300
    while not log.exists() or log.read_bytes().count(b"\n") < 12:
        assert time.monotonic() < deadline, [path.read_text()[-2000:] for path in outputs]
        assert all(process.poll() is None for process in hosts.processes), [p.read_text()[-2000:] for p in outputs]
        time.sleep(0.05)
    ranks = [rank for process in hosts.processes for rank in children(process.pid)]
    assert len(ranks) == 2
    ip("-n", hosts.names[0], "link", "set", "cable", "down")
    began = time.monotonic()
    # the ranks, not torchrun: cut off from its rendezvous it may wait for minutes, which holds no GPU
    while any(alive(rank) for rank in ranks):
        assert time.monotonic() - began < 30, [path.read_text()[-2000:] for path in outputs]
        time.sleep(0.05)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["world_size"]) == ("failed", 2)
    assert status["reason"].startswith("rank 1 (process "), status
    assert "gave no sign of life for 5 s" in status["reason"]
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2
    ours = dynamics(run)[:12]
    alone = write_recipe(tmp_path, max_steps=12, lr_scheduler_type="constant", output_dir=str(tmp_path / "alone"))
    train(resolve_recipe(alone))
    theirs = dynamics(tmp_path / "alone")
    assert len(theirs) == len(ours) == 12
    assert [line["samples_sha256"] for line in ours] == [line["samples_sha256"] for line in theirs]
    for key, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3)):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in theirs], rel=tolerance)
