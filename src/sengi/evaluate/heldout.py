"""Held-out loss by source and phase, computed by the model in training on all of its ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sengi.data.packing import pack_step
from sengi.data.packs import make_pack
from sengi.data.store import TokenStore

CONFIDENCE_Z = 1.959964  # normal quantile of a 95% interval


@torch.no_grad()
def heldout_losses(
    model: nn.Module,
    store: TokenStore,
    budget: int,
    rank: int,
    world_size: int,
    device: torch.device,
    add_up: Callable[[Tensor], Tensor],
) -> NDArray[np.float64]:
    """Summed negative log-likelihood of each held-out sample, float64 (n,), in nats.

    Args:
        model: the supervised model, sharded or not; all ranks must call this together.
        store: held-out samples.
        budget: tokens a pack may hold.
        add_up: sums a tensor over ranks in place.
    """
    packs = pack_step(store.lengths, max(budget, int(store.lengths.max())), world_size)
    sums = torch.zeros(len(store), dtype=torch.float64, device=device)
    for members in packs.ranks[rank]:
        pack = make_pack(store.samples(members)).to(device)
        _, nll = model(pack, torch.zeros(len(pack.targets), device=device))
        if len(members):
            sums.index_add_(0, torch.from_numpy(members).to(device)[pack.document], nll.double())
    result: NDArray[np.float64] = add_up(sums).cpu().numpy()
    return result


def heldout_scores(store: TokenStore, sums: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Score rows: token-mean loss of all samples, and of each source and phase, with 95% intervals.

    The loss is a ratio of sums over samples; its interval comes from the linearised ratio with samples as the
    independent units (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    everything = np.ones(len(store), dtype=bool)
    groups = [("all", everything)]
    for kind, names, member in (
        ("source", store.source_names, store.source_of),
        ("phase", store.phase_names, store.phase_of),
    ):
        groups += [(f"{kind}={name}", member == number) for number, name in enumerate(names) if name]
    rows = []
    for name, chosen in groups:
        counts, losses = store.supervised[chosen], sums[chosen]
        value = float(losses.sum() / counts.sum())
        n = int(chosen.sum())
        spread = float(((losses - value * counts) ** 2).sum()) * n / max(1, n - 1)
        error = CONFIDENCE_Z * math.sqrt(spread) / float(counts.sum()) if n > 1 else None  # one sample has no spread
        rows.append(
            {
                "task": "heldout",
                "metric": "loss",
                "group": name,
                "value": value,
                "low": None if error is None else value - error,
                "high": None if error is None else value + error,
                "n": n,
            }
        )
    return rows
