"""What several processes tell each other: JSON in byte tensors, never pickle; nobody fails alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import sengi.errors as errors
from sengi.errors import RankError, SengiError


def gather(value: Any, size: int, group: Any) -> list[Any]:
    """JSON values of all ranks, by rank; every rank must call this.

    Args:
        value: of this rank.
        size: number of ranks.
        group: a gloo group of them; not used in a world of one.
    """
    if size == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(sizes, torch.tensor([len(data)]), group=group)
    padded = torch.zeros(max(int(length) for length in sizes), dtype=torch.uint8)
    padded[: len(data)] = torch.from_numpy(data.copy())
    parts = [torch.zeros_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded, group=group)
    return [json.loads(part[: int(n)].numpy().tobytes()) for part, n in zip(parts, sizes, strict=True)]


def together(work: Callable[[], Any], rank: int, size: int, group: Any) -> list[Any]:
    """Run ``work`` on every rank.

    Args:
        work: returns a JSON value.
        rank: of this process.
        size: number of ranks.
        group: as for :func:`gather`.

    Returns:
        The results by rank.

    Raises:
        SengiError: the error of the lowest rank that failed, as the same class; RankError for any other exception on
            another rank.
    """
    result, failure, raised = None, None, None
    try:
        result = work()
    except Exception as error:
        raised, failure = error, [type(error).__name__, str(error) or repr(error)]
    outcomes = gather([result, failure], size, group)
    for number, (_, problem) in enumerate(outcomes):
        if problem is None:
            continue
        if raised is not None and number == rank:
            raise raised
        kind = getattr(errors, problem[0], None)
        told: SengiError = RankError(f"rank {number}: {problem[0]}: {problem[1]}")
        if isinstance(kind, type) and issubclass(kind, SengiError) and kind is not errors.MaskError:
            told = kind(problem[1])
        told.elsewhere = True  # the rank it happened on prints it
        raise told
    return [value for value, _ in outcomes]
