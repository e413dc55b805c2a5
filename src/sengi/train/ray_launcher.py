"""One run on a Ray cluster: Ray places and restarts the processes, :func:`sengi.train.run.train` does the rest.

Each worker is a rank, as under torchrun. What goes wrong on one ends all (lifeline.py); Ray then starts all of them
again, and they continue from the last checkpoint. Nothing of the run is kept by Ray: the run folder is the truth.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sengi.errors import InputError, SengiError
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
    """

    resolved: ResolvedRecipe
    workers: int
    gpus: bool
    restarts: int = 3


def train_on_ray(job: RayJob) -> Path:
    """Run the recipe on the cluster that ``ray.init`` is connected to.

    Returns:
        The run folder.

    Raises:
        InputError: Ray is not installed, or ``output_dir`` is not absolute.
        SengiError: the run failed more often than it may be restarted; names the last cause.
    """
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise InputError("Ray is not installed; install it with: pip install 'sengi[ray]'") from None
    folder = Path(job.resolved.recipe.output_dir)
    if not folder.is_absolute():
        raise InputError(
            f"output_dir is {folder}: workers have working folders of their own; give an absolute path that all "
            "machines share"
        )
    with tempfile.TemporaryDirectory(prefix="sengi-ray-") as records:  # Ray's own, of no use after the run
        trainer = TorchTrainer(
            _work,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=job.workers, use_gpu=job.gpus),
            torch_config=TorchConfig(backend="nccl" if job.gpus else "gloo", timeout_s=STALL_TIMEOUT),
            run_config=RunConfig(storage_path=records, failure_config=FailureConfig(max_failures=job.restarts)),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise SengiError(f"{folder}: the run failed under Ray: {_last_line(error)}") from error
    return folder


def _work(config: dict[str, Any]) -> None:
    """A rank, inside a worker of Ray."""
    from sengi.train.run import train

    train(config["job"].resolved)


def _last_line(error: BaseException) -> str:
    """The innermost cause that Ray hands on, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
