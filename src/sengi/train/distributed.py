"""The processes of one run: who is who, and how they agree.

What one rank does alone, all ranks learn the outcome of; nobody raises alone and leaves the others waiting.
Messages between ranks are JSON in byte tensors, never pickle.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sengi import collective
from sengi.environment import ask_for_huge_pages, keep_few_kernels
from sengi.train.parent import die_with

STALL_TIMEOUT = 300  # seconds a rank may keep the others waiting in a step before all stop (torch: 1,800)
CONTROL_TIMEOUT = 7200  # the same between steps, where rank 0 may save alone


@dataclass(frozen=True)
class World:
    """The group of processes that train one model, as this process sees it."""

    rank: int
    size: int
    device: torch.device
    control: Any = None  # gloo group for messages; works beside NCCL and has a longer patience

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes logs and publishes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place; the same tensor is returned."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, group=self.control)
        return bool(votes.item())

    def gather(self, value: Any) -> list[Any]:
        """JSON values of all ranks, by rank."""
        return collective.gather(value, self.size, self.control)

    def together(self, work: Callable[[], Any]) -> list[Any]:
        """Run ``work`` on every rank; JSON results by rank, or the same error on all of them.

        Raises:
            SengiError: the error of the lowest rank that failed, as the same class; RankError for any other
                exception on another rank.
        """
        return collective.together(work, self.rank, self.size, self.control)

    def on_first(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` on rank 0 only; its JSON result, or its error, on every rank."""
        return self.together(lambda: work() if self.first else None)[0]


def start_world() -> World:
    """Join the processes that torchrun or Ray started, or be a world of one.

    The device is CUDA where there is one (the rank's own), else the CPU. A dead torchrun takes its ranks along,
    and a rank that hangs for STALL_TIMEOUT seconds stops all.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        ask_for_huge_pages()
        keep_few_kernels()
    control = None
    if "RANK" in os.environ:
        if device.type == "cpu" and not _threads_were_asked_for(os.getppid()):
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here()))
        if not dist.is_initialized():  # else by Ray, which also looks after its processes
            die_with(os.getppid())  # torchrun's death
            timeout = datetime.timedelta(seconds=STALL_TIMEOUT)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        control = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=CONTROL_TIMEOUT))
    return World(rank, size, device, control)


def _threads_were_asked_for(parent: int, processes: Path = Path("/proc")) -> bool:
    """Whether somebody set OMP_NUM_THREADS: torchrun sets it to 1 where nobody did, whatever cores there are.

    Args:
        parent: the process that started this one; what it was started with is in ``processes``.
    """
    if "OMP_NUM_THREADS" not in os.environ or "TORCHELASTIC_RUN_ID" not in os.environ:
        return "OMP_NUM_THREADS" in os.environ
    try:
        began_with = (processes / str(parent) / "environ").read_bytes().split(b"\0")
    except OSError:
        return True
    return any(entry.startswith(b"OMP_NUM_THREADS=") for entry in began_with)


def ranks_here() -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def end_world() -> None:
    """Leave the group; harmless in a world of one."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()
