"""Held-out loss by source and phase, computed by the model in training on all of its ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sengi.data.packing import pack_step
from sengi.data.packs import make_pack
from sengi.data.store import TokenStore
from sengi.errors import NonFiniteError
from sengi.statistics.intervals import ratio_interval


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

    Raises:
        NonFiniteError: the loss of a sample is NaN or infinite; names the first one, on all ranks.
    """
    packs = pack_step(store.lengths, max(budget, int(store.lengths.max())), world_size)
    sums = torch.zeros(len(store), dtype=torch.float64, device=device)
    for members in packs.ranks[rank]:
        pack = make_pack(store.samples(members)).to(device)
        _, nll = model(pack, torch.zeros(len(pack.targets), device=device))
        if len(members):
            sums.index_add_(0, torch.from_numpy(members).to(device)[pack.document], nll.double())
    result: NDArray[np.float64] = add_up(sums).cpu().numpy()
    if broken := np.flatnonzero(~np.isfinite(result)).tolist():
        raise NonFiniteError(
            f"{store.place(broken[0])}: its held-out loss is {result[broken[0]]} ({len(broken):,} of {len(store):,} "
            "samples are so): the model's weights are damaged; score an earlier checkpoint, or look into the run's "
            "dynamics.jsonl for the step where it broke"
        )
    return result


def heldout_scores(store: TokenStore, sums: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Score rows: token-mean loss of all samples, and of each source and phase, with 95% intervals.

    The loss is a ratio of sums over samples, which are the independent units: see
    :func:`sengi.statistics.intervals.ratio_interval`. One sample has no spread: its ends are None.

    Args:
        store: held-out samples.
        sums: summed negative log-likelihood of each, shape (n,), from :func:`heldout_losses`.
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
        counts = store.supervised[chosen]
        loss = ratio_interval(sums[chosen] / counts, counts)
        rows.append(
            {
                "task": "heldout",
                "metric": "loss",
                "group": name,
                "value": loss.value,
                "low": None if loss.n == 1 else loss.low,
                "high": None if loss.n == 1 else loss.high,
                "n": loss.n,
            }
        )
    return rows


def heldout_items(store: TokenStore, sums: NDArray[np.float64]) -> list[dict[str, Any]]:
    """One item a sample, so that two models or checkpoints can be compared sample by sample.

    Args:
        store: held-out samples.
        sums: summed negative log-likelihood of each, shape (n,), from :func:`heldout_losses`.

    Returns:
        In the order of the store: ``task``, ``id`` (index in the store), ``metric`` ("loss"), ``correct`` (mean loss
        of the sample, nats a token), ``weight`` (its supervised tokens: the weighted mean of ``correct`` is the
        loss of the set), ``question`` (file and row), ``source``, ``phase``, ``prompt_hash`` (SHA-256 of token ids
        and mask: other data, template or tokenizer, other hash).
    """
    return [
        {
            "task": "heldout",
            "id": str(index),
            "metric": "loss",
            "correct": float(sums[index] / tokens),
            "weight": int(tokens),
            "question": store.place(index),
            "source": store.source_names[store.source_of[index]],
            "phase": store.phase_names[store.phase_of[index]],
            "prompt_hash": _fingerprint(store, index),
        }
        for index, tokens in enumerate(store.supervised)
    ]


def _fingerprint(store: TokenStore, index: int) -> str:
    sample = store.sample(index)
    ids = sample.input_ids.astype("<i4").tobytes()
    return hashlib.sha256(ids + sample.loss_mask.astype(np.uint8).tobytes()).hexdigest()
