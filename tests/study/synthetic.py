"""Runs as formulas: loss falls with the rate, the norm has a floor of noise that shrinks with the batch."""

from __future__ import annotations

import numpy as np

from sengi.study.judge import JudgeSettings
from sengi.study.signals import History

BUDGET = 4000
SETTINGS = JudgeSettings(check_samples=400, early_samples=2000, mode="terminate")


def run(
    name: str,
    pace: float = 1.0,
    norm: float = 1.0,
    batch: int = 16,
    *,
    seed: int = 0,
    spread: float = 0.01,
    warmup: int = 0,
    settings: str = "",
    trace: float | None = None,
    samples: int = BUDGET,
) -> History:
    """A run whose loss falls from 3 at ``pace`` and whose gradient has norm ``norm`` and noise ``trace / batch``.

    Runs of one seed share the noise of their data, as runs over the same samples do.
    """
    seen = np.arange(batch, samples + 1, batch)
    rng = np.random.default_rng(seed)
    fall = pace * (1 - np.exp(-np.maximum(seen - batch, 0) / 2000))
    loss = 3 - fall + spread * rng.standard_normal(len(seen)) / np.sqrt(batch / 16)
    signal = norm**2 * np.exp(0.5 * spread * rng.standard_normal(len(seen)))
    part = np.full(len(seen), np.nan if trace is None else trace / batch)
    square = signal + np.nan_to_num(part)
    return History(
        name,
        settings or f"{pace} {norm} {batch}",
        batch,
        warmup,
        tuple(int(s) for s in seen),
        tuple(loss.tolist()),
        tuple(np.sqrt(square).tolist()),
        tuple(part.tolist()),
    )
