"""Study folders without training: runs of a grid whose final loss, early loss and norm are formulas."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Loss = Callable[[dict[str, Any], int], float]
BUDGET = 2048
QUESTIONS = 40
WRITTEN = 1_800_000_000.0


def as_the_paper_says(settings: dict[str, Any], seed: int) -> float:
    """Larger batches and lower rates end lower; seeds differ by little."""
    batch, rate = settings.get("effective_batch_size", 32), settings.get("learning_rate", 1e-3)
    chance = 0.004 * np.random.default_rng([seed, batch, int(rate * 1e7)]).standard_normal()
    return float(2.0 - 0.05 * math.log2(batch / 8) + 0.2 * math.log10(rate / 1e-4) + chance)


def write_study_folder(
    folder: Path,
    space: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (1, 2),
    loss: Loss = as_the_paper_says,
    states: Mapping[str, str] | None = None,
    objective: str = "heldout_loss",
    verdicts: Sequence[dict[str, Any]] = (),
    state: str = "finished",
    **recipe: Any,
) -> Path:
    """Write a study of a grid.

    Args:
        folder: of the study.
        space: recipe key -> values; two batches by three rates where left out.
        seeds: of every point.
        loss: final held-out loss of settings and seed.
        states: run name -> ``failed``, ``stopped``, ``running``, ``waiting`` or ``finished`` (all others).
        objective: ``heldout_loss``, or ``facts/accuracy``.
        verdicts: lines of verdicts.jsonl.
        state: of the study.
        recipe: more keys of the recipe.
    """
    space = space or {"effective_batch_size": [8, 32], "learning_rate": [1e-4, 1e-3, 1e-2]}
    base: dict[str, Any] = {"model_name_or_path": "model", "data": ["train.jsonl"], "eval_data": ["heldout.jsonl"]}
    base |= {"effective_batch_size": 32, **recipe}
    if objective != "heldout_loss":
        base["eval_questions"] = ["facts.jsonl"]
    folder.mkdir(parents=True)
    request = {
        "recipe": base,
        "output_dir": str(folder),
        "space": dict(space),
        "seeds": list(seeds),
        "budget_samples": BUDGET,
        "objective": objective,
    }
    ranges = any(isinstance(values, dict) for values in space.values())
    request |= {"num_trials": 3} if ranges else {}
    (folder / "request.json").write_text(json.dumps(request))
    rows = []
    for point, settings in enumerate(_points(space), start=1):
        for seed in seeds:
            name = f"{point:03}-s{seed}"
            how = (states or {}).get(name, "finished")
            rows.append({"name": name, "state": how})
            if how != "waiting":
                _write_run(folder / "runs" / name, {**base, **settings}, seed, how, loss(settings, seed), objective)
    (folder / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in verdicts))
    (folder / "study.json").write_text(json.dumps({"state": state, "runs": rows}))
    return folder


def _points(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = [v if isinstance(v, list) else [v["low"], v["high"], (v["low"] + v["high"]) / 2] for v in space.values()]
    if any(isinstance(values, dict) for values in space.values()):
        return [dict(zip(space, values, strict=True)) for values in zip(*lists, strict=True)]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def _write_run(folder: Path, recipe: dict[str, Any], seed: int, how: str, final: float, objective: str) -> None:
    (folder / "evaluations").mkdir(parents=True)
    batch = int(recipe.get("effective_batch_size", 32))
    steps = BUDGET // batch
    (folder / "request.json").write_text(
        json.dumps({**recipe, "seed": seed, "output_dir": str(folder), "max_steps": steps, "num_train_epochs": 10_000})
    )
    facts = {"world_size": 1, "device": "cpu", "cpu": {"torch_threads": 2}}
    (folder / "environment.json").write_text(json.dumps(facts))
    done = steps if how == "finished" else steps // 3
    rng = np.random.default_rng([seed, 7])
    norm = 0.5 + 0.4 * final + 1 / batch
    with (folder / "dynamics.jsonl").open("w") as file:
        for step in range(1, done + 1):
            seen = step * batch
            told = 4 - (4 - final) * (1 - math.exp(-seen / 500)) + 0.02 * rng.standard_normal()
            record = {
                "step": step,
                "samples_seen": seen,
                "loss": told,
                "grad_norm": norm * math.exp(0.05 * rng.standard_normal()),
                "num_tokens": 50 * batch,
                "step_seconds": 0.01 * batch,
            }
            file.write(json.dumps(record) + "\n")
    status = "finished" if how == "finished" else how
    (folder / "status.json").write_text(json.dumps({"state": status}))
    if how in ("finished", "failed", "stopped"):
        reason = {"failed": "loss is nan", "stopped": "stopped, 2 checks in a row: worse on both signals"}.get(how, "")
        check = BUDGET // 4 if how == "stopped" else None
        (folder / "outcome.json").write_text(json.dumps({"state": how, "reason": reason, "check": check}))
    write_evaluation(folder, 0, 0, 4.0, objective)
    if how == "finished":
        write_evaluation(folder, steps // 2, steps // 2 * batch, final + 0.1, objective)
        write_evaluation(folder, steps, steps * batch, final, objective)


def write_evaluation(folder: Path, step: int, seen: int, loss: float, objective: str) -> None:
    """Held-out loss with its items, or the share of right answers that falls with the loss."""
    rng = np.random.default_rng(3)  # the same questions are hard for every run
    weights, hard = rng.integers(5, 40, QUESTIONS), rng.standard_normal(QUESTIONS)
    if objective == "heldout_loss":
        task, metric, kind = "heldout", "loss", "heldout"
        values = loss * (1 + 0.2 * (hard - np.average(hard, weights=weights)))
    else:
        task, metric, kind = "facts", "accuracy", "questions"
        values, weights = (hard > loss - 2.5).astype(float), np.ones(QUESTIONS, dtype=int)
    value = float(np.average(values, weights=weights))
    items = [
        {
            "task": task,
            "id": str(n),
            "metric": metric,
            "correct": bool(v) if metric == "accuracy" else float(v),
            "weight": int(w),
            "question": f"question {n}",
        }
        for n, (v, w) in enumerate(zip(values, weights, strict=True))
    ]
    score = {"task": task, "metric": metric, "group": "all", "value": value, "low": value - 0.05, "high": value + 0.05}
    name = folder / "evaluations" / f"step-{step:08d}-{kind}"
    name.with_suffix(".items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    content = {"step": step, "samples_seen": seen, "scores": [{**score, "n": QUESTIONS}]}
    name.with_suffix(".json").write_text(json.dumps(content))


def verdict(run: str, check: int, state: str) -> dict[str, Any]:
    """A line of verdicts.jsonl."""
    return {"run": run, "check": check, "state": state, "reason": f"{state} at {check} samples: norm +9%, loss -0.04"}
