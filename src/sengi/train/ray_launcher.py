"""One run on a Ray cluster: Ray places and restarts the processes, :func:`sengi.train.run.train` does the rest.

Each worker is a rank, as under torchrun. What goes wrong on one ends all (lifeline.py); Ray then starts all of them
again, and they continue from the last checkpoint. What would go wrong the same way again (bad input, a loss that is not
finite) and a request to stop end the run at once. Nothing of it is kept by Ray: the run folder is the truth.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sengi import errors
from sengi.errors import InputError, NonFiniteError, SengiError, StoppedByRequest
from sengi.recipe_sources import ResolvedRecipe
from sengi.train.distributed import STALL_TIMEOUT


@dataclass(frozen=True)
class RayJob:
    """What a worker needs to know; sent to each of them by Ray.

    Attributes:
        resolved: the recipe; its ``output_dir`` must be an absolute path that all machines share.
        workers: processes, one a GPU where there are GPUs.
        gpus: whether each has one.
        restarts: times that Ray starts all of them again after a failure.
        cpus: cores that Ray sets aside for each.
        stop_file: asks all of them to save and stop by being there; an absolute path, too.
    """

    resolved: ResolvedRecipe
    workers: int
    gpus: bool
    restarts: int = 3
    cpus: int = 1
    stop_file: Path | None = None


def train_on_ray(job: RayJob) -> Path:
    """Run the recipe on the cluster that ``ray.init`` is connected to.

    Returns:
        The run folder.

    Raises:
        InputError: Ray is not installed, ``output_dir`` is not absolute, or the run's input is bad.
        StoppedByRequest: ``stop_file`` asked to stop; the state is saved, the same call continues.
        SengiError: the run failed, more often than it may be restarted where that could help; names the last cause.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise InputError("Ray is not installed; install it with: pip install 'sengi[ray]'") from None
    folder = Path(job.resolved.recipe.output_dir)
    if not folder.is_absolute():
        raise InputError(
            f"output_dir is {folder}: workers have working folders of their own; give an absolute path that all "
            "machines share"
        )
    resources = {"CPU": job.cpus} | ({"GPU": 1} if job.gpus else {})
    for left in range(job.restarts, -1, -1):
        with tempfile.TemporaryDirectory(prefix="sengi-ray-") as records:  # Ray's own, of no use after the run
            trainer = TorchTrainer(
                _work,
                train_loop_config={"job": job},
                scaling_config=ScalingConfig(num_workers=job.workers, use_gpu=job.gpus, resources_per_worker=resources),
                torch_config=TorchConfig(backend="nccl" if job.gpus else "gloo", timeout_s=STALL_TIMEOUT),
                run_config=RunConfig(storage_path=records),
            )
            try:
                trainer.fit()
                break
            except Exception as error:  # Ray has its own for each way to fail
                _raise_what_stays(error)
                if not left:
                    raise SengiError(f"{folder}: the run failed under Ray: {last_line(str(error))}") from error
    return folder


def _work(config: dict[str, Any]) -> None:
    """A rank, inside a worker of Ray."""
    from sengi.train.run import train

    job: RayJob = config["job"]
    train(job.resolved, stop_file=job.stop_file)


def _raise_what_stays(error: Exception) -> None:
    """Raise the error of a rank that would be the same again: Ray hands on its traceback, which ends with it.

    Raises:
        InputError, NonFiniteError, StoppedByRequest: some rank raised it, with its message.
    """
    for failure in getattr(error, "worker_failures", {}).values():
        found = re.fullmatch(rf"{re.escape(errors.__name__)}\.(\w+): (.+)", last_line(str(failure)))
        kind = getattr(errors, found[1], SengiError) if found is not None else SengiError
        for stays in (InputError, NonFiniteError, StoppedByRequest):
            if found is not None and issubclass(kind, stays):
                raise stays(found[2]) from None


def last_line(text: str) -> str:
    """The innermost cause in an error of Ray, whose text is a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no cause was given"
