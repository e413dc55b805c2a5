"""Step records as formulas: healthy runs of several shapes, and faults planted into them."""

from __future__ import annotations

from typing import Any

import numpy as np

SHAPES = ("power", "line", "epochs", "fast start")


def records(
    loss: np.ndarray, norm: np.ndarray, *, epochs: float = 3.0, warmup: int = 0, rate: float = 1e-4, **more: Any
) -> list[dict[str, Any]]:
    """Lines of dynamics.jsonl as far as alarms read them."""
    count = len(loss)
    return [
        {
            "step": k + 1,
            "phase": "stacked",
            "epoch": (k + 1) / count * epochs,
            "loss": float(loss[k]),
            "grad_norm": float(norm[k]),
            "learning_rate": rate * min(1.0, (k + 1) / (warmup + 1)),
            "half_grad_norm": None,
            "half_share": None,
            **more,
        }
        for k in range(count)
    ]


def healthy_loss(shape: str, count: int, epochs: float) -> np.ndarray:
    """Losses that fall for as long as they are trained on."""
    t = np.arange(count)
    if shape == "power":
        return 1 + 1.5 * (1 + t) ** -0.3
    if shape == "line":
        return 2 - t / count
    if shape == "epochs":  # flat within an epoch, lower with each: what has been seen is remembered
        return 1.2 + 0.8 * np.exp(-30 * t / count) - 0.15 * np.floor(t / count * epochs)
    return 1 + 2 * np.exp(-t / 12) - 0.3 * t / count


def healthy_run(
    rng: np.random.Generator,
    shape: str,
    count: int,
    spread: float,
    norm_spread: float = 0.2,
    heavy: bool = False,
    epochs: float = 3.0,
    warmup: int = 0,
) -> list[dict[str, Any]]:
    """A run with noise: ``spread`` of the loss in nats, ``norm_spread`` of the logarithm of the norm."""

    def draw() -> np.ndarray:
        return rng.standard_t(4, count) / np.sqrt(2) if heavy else rng.standard_normal(count)

    loss = healthy_loss(shape, count, epochs) + spread * draw()
    norm = (1 + 3 * np.exp(-np.arange(count) / 20)) * np.exp(norm_spread * draw())
    return records(loss, norm, epochs=epochs, warmup=warmup)
