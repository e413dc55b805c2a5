"""Runs on a Ray cluster: Ray finds a place for each, one process or several; the study watches their folders.

A run is driven by a task of Ray, which starts its processes through Ray Train and starts them again, from the last
checkpoint, when one dies or its machine is lost. Ray ends all of them with the study. The study folder, the model,
the data and SENGI_CACHE must lie under the same paths on all machines.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sengi import storage
from sengi.errors import InputError, SengiError, one_line
from sengi.recipe_sources import resolve_recipe
from sengi.study.run_executor import Ended
from sengi.study.space import Run
from sengi.study.study_file import Executor
from sengi.train.ray_launcher import RayJob, last_line, train_on_ray

STOP = "stop.json"  # in the run folder: asks the run to save and stop
RESTARTS = 3  # times that a run is started again after a process or machine was lost


class RayExecutor:
    """Tasks of the cluster that ``address`` names.

    Args:
        asked: the study file's ``executor``.

    Raises:
        InputError: Ray is not installed, no cluster answers, or none of its machines has room for a process of a run,
            or all together not for all of them.
    """

    def __init__(self, asked: Executor) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("executor ray: Ray is not installed; install it with: pip install 'sengi[ray]'") from None
        self._ray = ray
        try:
            if not ray.is_initialized():
                _knock(asked.address)
                ray.init(asked.address, logging_level="ERROR", log_to_driver=False)
        except Exception as error:  # Ray has its own for each way to fail
            raise InputError(
                f"executor.address is '{asked.address}', but no Ray cluster answers there "
                f"({one_line(error, 200)}); start one with 'ray start --head' and join it with "
                "'ray start --address=HEAD:6379', or use executor: local"
            ) from None
        self._processes, self._cpus = asked.processes_per_run, asked.cpus_per_process
        nodes = [node.get("Resources", {}) for node in ray.nodes() if node["Alive"]]
        self._gpus = any(node.get("GPU", 0) for node in nodes)
        places = sum(places_on(node, self._cpus, self._gpus) for node in nodes)
        if places < self._processes:
            each = f"{self._cpus} CPUs{' and a GPU' if self._gpus else ''}"
            raise InputError(
                f"executor: processes_per_run is {self._processes}, each with {each} of one machine, but the Ray "
                f"cluster at '{asked.address}' has room for {places} ({_shown(nodes)}); lower processes_per_run or "
                "cpus_per_process, or add machines"
            )
        self._parallel = places // self._processes if asked.parallel == "auto" else asked.parallel
        # several attempts at the task itself: the machine that drives a run may be lost, too
        self._drive = ray.remote(num_cpus=0, max_retries=RESTARTS)(_drive)
        self._running: dict[str, tuple[Any, Run]] = {}

    @property
    def free(self) -> int:
        """Runs that the cluster has room for."""
        return self._parallel - len(self._running)

    def start(self, run: Run) -> None:
        """Have a run driven somewhere."""
        folder = run.folder.resolve()
        (folder / STOP).unlink(missing_ok=True)
        task = self._drive.remote(str(run.request.resolve()), str(folder), self._processes, self._cpus, self._gpus)
        self._running[run.name] = task, run

    def stop(self, run: Run) -> None:
        """Ask a run to save and stop, through a file: no signal crosses machines."""
        if run.name in self._running:
            storage.write_json(run.folder / STOP, {"asked_by": os.getpid()})

    def ended(self) -> dict[str, Ended]:
        """Collect what ended."""
        done: dict[str, Ended] = {}
        tasks = {task: name for name, (task, _) in self._running.items()}
        ready = self._ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[0] if tasks else []
        for task in ready:
            name = tasks[task]
            del self._running[name]
            try:
                done[name] = Ended(*self._ray.get(task))
            except Exception as error:  # the task itself failed, or was lost more often than Ray tries again
                done[name] = Ended(1, f"Ray lost the run: {last_line(str(error))}")
        return done


def places_on(node: Mapping[str, float], cpus: int, gpus: bool) -> int:
    """Processes that one machine has room for: Ray never splits a process over two.

    Args:
        node: what it has, by kind.
        cpus: cores of a process; ``gpus`` says that it takes a GPU, too.
    """
    places = int(node.get("CPU", 0) // cpus)
    return min(places, int(node.get("GPU", 0))) if gpus else places


def _shown(nodes: Sequence[Mapping[str, float]]) -> str:
    """The machines of a cluster in words; equal ones together."""
    kinds = Counter(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
    return "; ".join(f"{count} with {kind}" for kind, count in sorted(kinds.items())) or "no machine"


def _knock(address: str) -> None:
    """Fail at once where nobody listens: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()


def _drive(request: str, folder: str, processes: int, cpus: int, gpus: bool) -> tuple[int, str]:
    """Train one run to its end, inside a task of Ray: exit code and cause, as a shell would tell them."""
    stop = Path(folder) / STOP
    resolved = resolve_recipe(request, values={"output_dir": folder})
    try:
        train_on_ray(RayJob(resolved, processes, gpus, RESTARTS, cpus, stop))
    except SengiError as error:
        return error.exit_code, str(error)
    return 0, ""
