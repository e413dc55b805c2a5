"""A study's results in memory: scores, single results and histories by formula, for the pure functions above them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sengi.study.judge import JudgeSettings
from sengi.study.recording import Point
from sengi.study.results import RunResult, StudyResults
from sengi.study.signals import History
from sengi.study.space import settings_text

BUDGET = 2000
BASE = {
    "effective_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_tokens_per_device": 4096,
    "strategy": "stacked",
    "phases": None,
}
Quality = Callable[[dict[str, Any]], float]


def make_run(
    point: int,
    settings: Mapping[str, Any],
    seed: int,
    score: float | None,
    *,
    items: int = 60,
    spread: float = 0.3,
    early: float = 0.0,
    norm: float = 1.0,
    state: str = "",
    **more: Any,
) -> RunResult:
    """One run whose score is the weighted mean of its single results.

    Args:
        point, settings, seed: which.
        score: its final held-out loss; None for a run that did not finish.
        items: single results; the same questions are hard for all runs.
        spread: of the single results, of which a quarter is this run's own.
        early: added to its early training loss; ``norm`` is its early gradient norm.
        state: in place of ``finished`` or, without a score, ``failed``.
        more: other attributes.
    """
    recipe = {**BASE, **settings}
    batch = int(recipe["effective_batch_size"])
    name = f"{point:03}-s{seed}"
    seen = tuple(range(batch, BUDGET + 1, batch))
    rng = np.random.default_rng([point, seed])
    loss = 3 + early - np.minimum(np.array(seen) / BUDGET, 0.5) + 0.01 * rng.standard_normal(len(seen))
    norms = norm * np.exp(0.02 * rng.standard_normal(len(seen)))
    told = History(name, settings_text(dict(settings)), batch, 0, seen, tuple(loss.tolist()), tuple(norms.tolist()), ())
    told = History(**{**told.__dict__, "noise": tuple([0.0] * len(seen))})
    single = {}
    if score is not None and items:
        shared = np.random.default_rng(5).standard_normal(items)
        own = np.random.default_rng([9, point, seed]).standard_normal(items)
        weights = np.random.default_rng(6).integers(5, 50, items).astype(float)
        values = shared + 0.25 * own
        values = score + spread * (values - np.average(values, weights=weights))
        single = {f"q{n:03}": (float(v), float(w)) for n, (v, w) in enumerate(zip(values, weights, strict=True))}
    points = () if score is None else (Point(0, 4.0, 3.9, 4.1), Point(seen[-1], score, score - 0.1, score + 0.1))
    return RunResult(
        name=name,
        point=point,
        seed=seed,
        settings=dict(settings),
        recipe=recipe,
        state=state or ("finished" if score is not None else "failed"),
        reason="" if score is not None else "loss is nan",
        score=points[-1] if points else None,
        history=told,
        evaluations=points,
        items=single,
        tokens=1000,
        seconds=10.0,
        folder=Path(f"study/runs/{name}"),
        **more,
    )


def make_study(
    space: Mapping[str, Sequence[Any]],
    quality: Quality,
    seeds: Sequence[int] = (1, 2, 3),
    chance: float = 0.002,
    seed: int = 0,
    **more: Any,
) -> StudyResults:
    """A grid with the final held-out loss of ``quality`` and ``chance`` between seeds."""
    rng = np.random.default_rng(seed)
    runs = []
    for point, values in enumerate(itertools.product(*space.values()), start=1):
        settings = dict(zip(space, values, strict=True))
        for one in seeds:
            runs.append(make_run(point, settings, one, quality(settings) + chance * rng.standard_normal(), **more))
    return results_of(runs, tuple(space))


def results_of(runs: Sequence[RunResult], keys: Sequence[str] = (), minimize: bool = True) -> StudyResults:
    """A study of these runs."""
    return StudyResults(
        folder=Path("study"),
        objective="heldout_loss" if minimize else "facts/accuracy",
        minimize=minimize,
        budget_samples=BUDGET,
        keys=tuple(keys),
        seeds=tuple(sorted({run.seed for run in runs})),
        searched=False,
        mode="advise",
        state="finished",
        judge=JudgeSettings(check_samples=BUDGET // 20, early_samples=3 * BUDGET // 10),
        model="model",
        runs=tuple(runs),
    )
