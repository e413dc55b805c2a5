"""The line of dynamics.jsonl that a step leaves."""

from __future__ import annotations

import resource

import torch

from sengi.train.distributed import World
from sengi.train.ledger import samples_digest
from sengi.train.setup import Setup
from sengi.train.step import StepResult


class Recorder:
    """Makes the records of a run's steps.

    Args:
        setup: of the run.
        world: its processes.
    """

    def __init__(self, setup: Setup, world: World) -> None:
        self.setup, self.world = setup, world
        self._peak = setup.plan.peak_flops

    def line(self, step: int, result: StepResult, rate: float, seconds: float, planned: float) -> dict[str, object]:
        """What a step was and measured.

        Args:
            step: from 1, over the whole run.
            rate: its learning rate.
            seconds: it took in all, ``planned`` of them to plan it.
        """
        setup = self.setup
        samples = setup.steps.step_samples(step)
        tokens, targets = int(setup.store.lengths[samples].sum()), int(setup.store.supervised[samples].sum())
        # what lean packs leave out was not computed
        speed = setup.cost.flops(result.computed_tokens, targets, result.computed_squares) / seconds
        ranks = self.world.size  # the peak is that of one: of its GPU, or of its share of a CPU's cores
        if self._peak is not None:  # a CPU's peak is measured; if the machine was busy then, a step can be faster
            self._peak = max(self._peak, speed / ranks)
        return {
            "step": step,
            "epoch": round(setup.steps.epoch_at(step), 6),
            "phase": setup.steps.phase_at(step).name,
            "samples_seen": setup.steps.samples_seen(step),
            "num_tokens": tokens,
            "num_supervised_tokens": targets,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "half_grad_norm": result.half_grad_norm,
            "half_share": result.half_share,
            "learning_rate": rate,
            "tokens_per_second": tokens / seconds,
            "mfu": speed / (self._peak * ranks) if self._peak else None,
            "step_seconds": seconds,
            "data_wait_seconds": planned + result.data_seconds,
            "peak_memory_bytes": _peak_memory(self.world.device),
            "samples_sha256": samples_digest(samples),
        }


def _peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: the allocator's on a GPU, the process's resident set on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
