"""What the judge looks at: loss and gradient norm of a run in a window of samples, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MIN_STEPS = 3  # steps a window must hold: fewer have no median, and no spread around their trend
BASE_SHARE = 0.02  # samples of a check, from the start on, that tell the loss that training began with
TO_SD = 1.4826  # median absolute deviation -> standard deviation, for a normal distribution
CHANCE = 1.96  # standard errors that chance explains: 95% of a normal distribution
LEARNS = 4.5  # standard errors that a loss must have fallen by: of the many runs and checks none may judge by luck
TINY = 1e-300  # no division by zero
NONE = np.empty(0), np.empty(0, dtype=np.int64)
MEDIAN_ERROR = 1.2533  # standard error of a median over that of a mean, sqrt(pi / 2)


@dataclass(frozen=True)
class History:
    """What is known of a run so far, one entry a step, ascending.

    Attributes:
        name: of the run.
        settings: text that is equal for runs that differ in nothing but the seed.
        batch_size: samples a step.
        warmup_samples: samples over which its rate rises.
        samples_seen: after each step.
        loss: mean over the step's supervised tokens, nats.
        grad_norm: global norm before clipping.
        noise: part of ``grad_norm ** 2`` that is noise (statistics/gradient_noise.py); NaN where not measured.
        stopped_at: check at which the run was stopped for good, or None.
        group: text that is equal for runs whose loss and norm mean the same; only runs of one group are compared.
    """

    name: str
    settings: str
    batch_size: int
    warmup_samples: int
    samples_seen: tuple[int, ...]
    loss: tuple[float, ...]
    grad_norm: tuple[float, ...]
    noise: tuple[float, ...]
    stopped_at: int | None = None
    group: str = ""

    def reached(self, samples: int) -> bool:
        """Whether the run trained on so many samples, and was not stopped before."""
        before = self.stopped_at is not None and self.stopped_at < samples
        return not before and bool(self.samples_seen) and self.samples_seen[-1] >= samples


@dataclass(frozen=True)
class Signals:
    """A run at a check.

    Attributes:
        loss: median over the window, nats; ``grad_norm`` likewise, as logged.
        corrected: median of the squared norm without its noise; NaN where noise was not measured. It may be
            negative: then noise is all that was seen.
        progress: how far the loss fell since the run began, nats, not counting a rise right after its first step;
            ``progress_error`` is what chance explains of it.
        loss_residuals: around the window's trend, times the root of the batch size: nats of one sample, shape (steps,).
        norm_residuals: of the norm, relative to it; ``corrected_residuals`` of the corrected norm.
        steps: in the window; ``samples`` in them.
    """

    loss: float
    grad_norm: float
    corrected: float
    progress: float
    progress_error: float
    loss_residuals: Floats
    norm_residuals: Floats
    corrected_residuals: Floats
    steps: int
    samples: int

    def log_norm(self, corrected: bool) -> float:
        """Logarithm of the norm, with or without its noise; -inf where nothing is left of it."""
        if not corrected:
            return math.log(self.grad_norm) if self.grad_norm > 0 else -math.inf
        return math.log(self.corrected) / 2 if self.corrected > 0 else -math.inf


def signals_at(history: History, check: int, window: float, warm: int) -> Signals | None:
    """The signals of a run over the last ``window`` share of ``check`` samples, or None with too few steps in it.

    Nothing after ``check`` is looked at.

    Args:
        check: samples seen at which runs are compared.
        window: share of ``check``.
        warm: samples after which the rates of all runs have risen; the window begins no earlier.
    """
    seen = np.asarray(history.samples_seen, dtype=np.int64)
    inside = (seen > max(check * (1 - window), warm)) & (seen <= check)
    steps = int(inside.sum())
    if steps < MIN_STEPS:
        return None
    loss, norm = np.asarray(history.loss, dtype=float), np.asarray(history.grad_norm, dtype=float)
    values = np.concatenate([loss[inside], norm[inside]])
    if not np.isfinite(values).all():
        return None
    squares = norm[inside] ** 2 - np.asarray(history.noise, dtype=float)[inside]
    measured = np.isfinite(squares)
    squares, places = (
        (squares[measured], seen[inside][measured]) if measured.sum() >= max(MIN_STEPS, steps / 2) else NONE
    )
    loss_residuals = residuals(seen[inside], loss[inside]) * math.sqrt(history.batch_size)
    grad_norm, corrected = float(np.median(norm[inside])), float(np.median(squares)) if len(squares) else math.nan
    begun, window_loss = max(1, int((seen <= BASE_SHARE * check).sum())), float(np.median(loss[inside]))
    # of one step, from all steps so far: those of the window alone are too few to be sure of
    sd = robust_sd([np.diff(loss[seen <= check]) / math.sqrt(2)])
    error = sd * math.sqrt(MEDIAN_ERROR**2 / steps + 1 / begun)
    # a rate that is too high throws the loss up at once: falling back from there is no learning, and the first step
    # alone is the loss of the model that all began with
    start = min(float(loss[:begun].mean()), float(loss[0]) + CHANCE * sd)
    return Signals(
        loss=window_loss,
        grad_norm=grad_norm,
        corrected=corrected,
        progress=start - window_loss,
        progress_error=LEARNS * error,
        loss_residuals=loss_residuals,
        norm_residuals=residuals(seen[inside], norm[inside]) / max(grad_norm, TINY),
        corrected_residuals=residuals(places, squares) / (2 * max(corrected, TINY)) if len(squares) else squares,
        steps=steps,
        samples=steps * history.batch_size,
    )


def residuals(x: NDArray[np.int64], y: Floats) -> Floats:
    """What is left of ``y`` after its straight line in ``x``, widened for the two numbers the line took."""
    centered = np.asarray(x, dtype=float) - float(x.mean())
    slope = float(centered @ y / (centered @ centered))
    left = y - y.mean() - slope * centered
    return np.asarray(left * math.sqrt(len(y) / (len(y) - 2)))


def robust_sd(parts: Sequence[Floats]) -> float:
    """Standard deviation of pooled residuals by their median size, which one spike does not move."""
    return TO_SD * float(np.median(np.abs(np.concatenate(list(parts)))))
