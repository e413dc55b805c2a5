"""Runs that run out of memory on purpose, alone or under torchrun, for test_out_of_memory.py.

    out_of_memory_program.py JOB.json ...

A job names a recipe and where an allocation fails: in the forward or backward pass of the last layer, on one rank, at
the n-th call (``fault``); or that the process may have only so many more bytes once the model is loaded (``room``).
``budget_of`` sets max_tokens_per_device to that of another run's plan.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sengi.train.run as module
from sengi.model.checkpointing import transformer_layers
from sengi.recipe_sources import resolve_recipe

SAID = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1099511627776 bytes (injected)"


def fail_at(layer: nn.Module, where: str, call: int) -> None:
    """Let the allocator fail in the ``call``-th forward pass (from 1) of ``layer``, or in the backward pass of it."""
    forward, calls = layer.forward, []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if torch.is_grad_enabled():
            calls.append(1)
        if torch.is_grad_enabled() and len(calls) == call:
            if where == "forward":
                raise RuntimeError(SAID)
            output.register_hook(fail)
        return output

    def fail(grad: torch.Tensor) -> None:
        raise RuntimeError(SAID)

    layer.forward = wrapped


def limit(room: int) -> None:
    """Let the address space grow by ``room`` bytes at most."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, resource.RLIM_INFINITY))


def run(job: dict[str, Any]) -> None:
    """Train as the job says."""
    values: dict[str, Any] = {}
    if "budget_of" in job:
        values["max_tokens_per_device"] = json.loads(Path(job["budget_of"], "plan.json").read_text())[
            "max_tokens_per_device"
        ]
    load = module._load

    def loaded(*args: Any) -> Any:
        loop = load(*args)
        fault = job.get("fault")
        if fault and int(os.environ.get("RANK", "0")) == fault["rank"]:
            fail_at(transformer_layers(loop.model)[fault.get("layer", -1)], fault["where"], fault["call"])
        if "room" in job:
            limit(job["room"])
        return loop

    module._load = loaded
    try:
        module.train(resolve_recipe(job["recipe"], values=values))
    finally:
        module._load = load


def main() -> None:
    """All jobs, one after the other, each in a group of its own."""
    for path in sys.argv[1:]:
        job = json.loads(Path(path).read_text())
        if "port" in job:  # a second group in the same processes must not meet the addresses of the first
            os.environ.update(
                TORCHELASTIC_USE_AGENT_STORE="False", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"])
            )
        run(job)


if __name__ == "__main__":
    main()
