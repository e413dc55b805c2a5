"""Rows of a leaderboard with intervals: its parts and their average, by resampling the questions of each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sengi.harness.leaderboard import AVERAGE, LEADERBOARDS, leaderboard_scores, leaves
from sengi.harness.lm_eval_tasks import Task
from sengi.harness.scores import Record, question_values

RESAMPLES = 1_000
BLOCK = 2_000_000  # resampled questions held at once: 16 MB an array


def leaderboard_rows(
    name: str, results: Mapping[str, Any], tasks: Mapping[str, Task], samples: Mapping[str, list[Record]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return a leaderboard's rows, between 0 and 1, and its parts without a score.

    The interval is the middle 95% of the scores of resampled questions. It is not computed from the intervals of the
    tasks, since IFEval's two metrics see the same questions, and normalisation cuts every subtask off at chance.
    Cut-off scores are too high near chance, where the luck of a subtask counts and its bad luck does not: the lower
    end is that of scores that are not cut off, so there the interval is wider than it need be, never too narrow.

    Args:
        name: a key of ``LEADERBOARDS``.
        results: lm-eval's results.
        tasks: all tasks by name.
        samples: lm-eval's samples by task.

    Returns:
        (rows as in :attr:`sengi.evaluation.Evaluation.scores`, the metric being the part's name;
        missing part -> tasks without a score).
    """
    subtasks = results["group_subtasks"]
    scores, missing = leaderboard_scores(name, results["results"], subtasks)
    wanted = {leaf for part in LEADERBOARDS[name] for leaf in leaves(part.task, subtasks) if leaf in tasks}
    draws = _resampled(name, {task: samples[task] for task in sorted(wanted)}, subtasks)
    sizes = {
        part.name: sum(results["n-samples"][leaf]["effective"] for leaf in wanted & {*leaves(part.task, subtasks)})
        for part in LEADERBOARDS[name]
    }
    sizes[AVERAGE] = sum(sizes.values())
    rows = []
    for metric, value in scores.items():
        whole, cut = draws[metric].T
        low, high = max(0.0, float(np.quantile(whole, 0.025))), float(np.quantile(cut, 0.975))
        ends = {"value": value, "low": low, "high": high, "n": sizes[metric]}
        rows.append({"task": name, "metric": metric, "group": "all", **ends})
    return rows, missing


def _resampled(
    name: str, samples: Mapping[str, list[Record]], subtasks: Mapping[str, Sequence[str]]
) -> dict[str, NDArray[np.float64]]:
    """Scores of resampled sets of questions: part or average -> shape (RESAMPLES, 2), as they are and cut at chance."""
    rng = np.random.default_rng(0)
    leaf_draws = {task: _task_draws(records, rng) for task, records in samples.items()}
    sizes = {task: len({record["doc_id"] for record in records}) for task, records in samples.items()}
    keys = {key for draws in leaf_draws.values() for key in draws}
    groups = {part.task for part in LEADERBOARDS[name] if part.task in subtasks}
    group_draws: dict[str, dict[str, NDArray[np.float64]]] = {}
    for group in groups:
        members = [leaf for leaf in leaves(group, subtasks) if leaf in leaf_draws]
        for key in keys:
            if members and all(key in leaf_draws[leaf] for leaf in members):
                table = np.stack([leaf_draws[leaf][key] for leaf in members])
                weights = [sizes[leaf] for leaf in members]
                group_draws.setdefault(group, {})[key] = np.average(table, axis=0, weights=weights)
    everything = {**leaf_draws, **group_draws}
    scored = []
    for index in range(RESAMPLES):
        one = {task: {key: float(draws[index]) for key, draws in found.items()} for task, found in everything.items()}
        scored.append([leaderboard_scores(name, one, subtasks, below_chance=below)[0] for below in (True, False)])
    return {metric: np.array([[row[metric] for row in both] for both in scored]) for metric in scored[0][0]}


def _task_draws(records: list[Record], rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """``metric,filter`` -> its values over the same resampled questions, shape (RESAMPLES,)."""
    tables = {}
    for (metric, filter_name), values in question_values(records).items():
        pairs = [_sum_and_count(value) for value in values]
        if all(pair is not None for pair in pairs):
            tables[f"{metric},{filter_name}"] = np.array(pairs, dtype=np.float64)
    n = max((len(table) for table in tables.values()), default=0)
    draws = {key: np.empty(RESAMPLES) for key, table in tables.items() if len(table) == n}
    step = max(1, BLOCK // max(1, n))
    for first in range(0, RESAMPLES, step):
        last = min(RESAMPLES, first + step)
        chosen = rng.integers(0, n, (last - first, n))
        for key, found in draws.items():
            totals = tables[key][chosen].sum(axis=1)
            found[first:last] = totals[:, 0] / totals[:, 1]
    return draws


def _sum_and_count(value: Any) -> tuple[float, int] | None:
    """A question's points and their possible number: 1, or the number of parts (IFEval's instructions)."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return float(value), 1
    if isinstance(value, list | tuple) and all(isinstance(part, bool | int | float) for part in value):
        return math.fsum(value), len(value)
    return None
