"""The three curves of a run as numbers to draw: axes, thinning, smoothing. Bokeh and matplotlib draw the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sengi.report.run_folder import RunFolder, as_number
from sengi.report.scores import held_out_losses

Numbers = NDArray[np.float64]
POINTS = 4_000
# The smooth line looks a fortieth of the run to either side; short runs have nothing to smooth.
SMOOTH_SHARE = 40
SMOOTH_FROM = 80
# Gradient norms with a peak this far above the median are drawn on a log axis, or the curve lies flat.
LOG_FROM = 20


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity over a run.

    Attributes:
        key: its name in dynamics.jsonl.
        title: its name for people.
        axes: position of each drawn point on each x axis (``step``, ``samples``, ``tokens``, ``time``), shape (m,).
        values: shape (m,); NaN leaves a gap.
        smooth: centred moving median at the same points, or None for short runs.
        total: number of steps before thinning.
        log: whether a log axis shows it better.
    """

    key: str
    title: str
    axes: dict[str, Numbers]
    values: Numbers
    smooth: Numbers | None
    total: int
    log: bool = False


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out losses as points: positions as in ``Curve.axes``, values, interval ends, names; shape (k,)."""

    axes: dict[str, Numbers]
    values: Numbers
    low: Numbers
    high: Numbers
    names: list[str]


def curves_of(run: RunFolder) -> list[Curve]:
    """Loss, gradient norm and learning rate; empty without step records."""
    titles = {"loss": "training loss", "grad_norm": "gradient norm", "learning_rate": "learning rate"}
    axes = axes_of(run)
    return [_curve(key, title, axes, run.dynamics[key]) for key, title in titles.items()] if run.steps else []


def _curve(key: str, title: str, axes: dict[str, Numbers], column: Numbers) -> Curve:
    values = np.where(np.isfinite(column), column, np.nan)
    at = thin(values, POINTS)
    smooth = moving_median(values, at) if key != "learning_rate" and values.size >= SMOOTH_FROM else None
    positive = values[values > 0]
    log = key == "grad_norm" and positive.size > 0 and bool(positive.max() > LOG_FROM * np.median(positive))
    drawn = np.where(values[at] > 0, values[at], np.nan) if log else values[at]
    return Curve(key, title, {name: axis[at] for name, axis in axes.items()}, drawn, smooth, values.size, log)


def axes_of(run: RunFolder) -> dict[str, Numbers]:
    """Where each step lies on each x axis; tokens and time (seconds in steps) are sums up to and with the step."""
    d = run.dynamics
    return {
        "step": d["step"],
        "samples": d["samples_seen"],
        "tokens": np.cumsum(np.nan_to_num(d["num_tokens"])),
        "time": np.cumsum(np.nan_to_num(d["step_seconds"])),
    }


def positions(run: RunFolder, steps: Numbers) -> dict[str, Numbers]:
    """Where the ends of ``steps``, shape (k,), lie on each x axis; step 0 lies at the origin."""
    axes = {"step": steps}
    known = run.dynamics["step"]
    for name, axis in axes_of(run).items():
        if name != "step":
            axes[name] = np.interp(steps, np.concatenate(([0.0], known)), np.concatenate(([0.0], axis)))
    return axes


def held_out_of(run: RunFolder) -> HeldOut:
    """The held-out losses; step 0 lies at the origin of every axis, a later one at its step's end."""
    losses = held_out_losses(run)
    axes = positions(run, np.array([step for step, _ in losses], dtype=np.float64))
    columns = ([getattr(score, end) for _, score in losses] for end in ("value", "low", "high"))
    values, low, high = (np.array(column, dtype=np.float64) for column in columns)
    return HeldOut(axes, values, low, high, [f"{score.task}, {score.group}" for _, score in losses])


def clip_norm(run: RunFolder) -> float:
    """The recipe's max_grad_norm; NaN where clipping is off or unknown."""
    norm = as_number(run.recipe.get("max_grad_norm"))
    return norm if norm > 0 else math.nan


def clipped_share(run: RunFolder) -> float:
    """Share of the steps whose gradient was scaled down; NaN where clipping is off or there are no steps."""
    norms = run.dynamics["grad_norm"][np.isfinite(run.dynamics["grad_norm"])]
    limit = clip_norm(run)
    return float((norms > limit).mean()) if norms.size and math.isfinite(limit) else math.nan


def thin(values: Numbers, limit: int) -> NDArray[np.intp]:
    """Indices of at most ``limit`` points that keep the first, the last, and both extremes of every bucket.

    Args:
        values: shape (n,); NaN is no extreme, a bucket of NaN alone keeps one so that the gap stays.
        limit: at least 4.

    Returns:
        Ascending indices without repetition; all of them when n <= limit.
    """
    if values.size <= limit:
        return np.arange(values.size)
    keep = [0, values.size - 1]
    for bucket in np.array_split(np.arange(values.size), (limit - 2) // 2):
        part = values[bucket]
        if np.isnan(part).all():
            keep.append(int(bucket[0]))
        else:
            keep += [int(bucket[np.nanargmin(part)]), int(bucket[np.nanargmax(part)])]
    return np.unique(keep)


def moving_median(values: Numbers, at: NDArray[np.intp]) -> Numbers:
    """Centred moving median, which one spike does not bend.

    Args:
        values: shape (n,); NaN is left out.
        at: indices to compute it for, shape (m,).

    Returns:
        Shape (m,). The window reaches a fortieth of the run to either side, at most as far as the first step and the
        last. Near the first it stays symmetric, or the fast fall of a fresh run would pull it down.
    """
    reach = max(2, values.size // SMOOTH_SHARE)
    smooth = np.full(at.size, np.nan)
    for position, i in enumerate(at):
        right = min(reach, i)
        window = values[max(0, i - reach) : i + right + 1]
        known = window[~np.isnan(window)]
        if known.size:
            smooth[position] = np.median(known)
    return smooth
