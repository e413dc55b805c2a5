"""lm-eval's results as rows of scores with intervals: every metric of every task, and every group that aggregates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sengi.harness.intervals import Stratum, group_interval, metric_interval, stratum
from sengi.harness.lm_eval_tasks import Group, Task, mean, process_results
from sengi.statistics.intervals import Interval
from sengi.statistics.metrics import is_higher_better

Record = dict[str, Any]
Values = dict[tuple[str, str], list[Any]]  # (metric, filter) -> what each question got, in the order of the questions


def question_values(records: Iterable[Record]) -> Values:
    """Return the values of one task's questions by metric and filter.

    Args:
        records: lm-eval's samples of the task.
    """
    values: Values = defaultdict(list)
    for record in records:
        for metric in record["metrics"]:
            values[metric, record["filter"]].append(record[metric])
    return dict(values)


def labels(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the name of each metric in tables: with its filter where the task has more than one.

    >>> labels([("acc", "none")])
    {('acc', 'none'): 'acc'}
    """
    keys = list(keys)
    several = len({filter_name for _, filter_name in keys}) > 1
    return {key: ",".join(key) if several else key[0] for key in keys}


def without_excluded(
    results: dict[str, Any],
    tasks: Mapping[str, Task],
    groups: Mapping[str, Group],
    samples: Mapping[str, list[Record]],
    excluded: set[tuple[str, int]],
) -> tuple[dict[str, Any], dict[str, list[Record]]]:
    """Aggregate again without the questions that could not be scored; lm-eval would count them as wrong.

    Args:
        results: lm-eval's results.
        tasks: all tasks by name.
        groups: all groups by name.
        samples: lm-eval's samples by task.
        excluded: (task, doc_id) of the questions to leave out.

    Returns:
        Results and samples without them.
    """
    kept = {name: [r for r in records if (name, r["doc_id"]) not in excluded] for name, records in samples.items()}
    gathered: dict[str, Any] = {
        name: {"task": tasks[name], "raw_metrics": question_values(records), "logged_samples": records}
        for name, records in kept.items()
    }
    again = process_results(gathered, dict(groups), 0)._to_eval_results()
    return {**results, **again}, kept


def score_rows(
    results: Mapping[str, Any],
    tasks: Mapping[str, Task],
    groups: Mapping[str, Group],
    samples: Mapping[str, list[Record]],
) -> list[dict[str, Any]]:
    """Return rows as in :attr:`sengi.evaluation.Evaluation.scores`: groups first, then tasks, as they were asked for.

    Args:
        results: lm-eval's ``results``: task or group -> ``metric,filter`` -> value.
        tasks: all tasks by name.
        groups: all groups by name.
        samples: lm-eval's samples by task.
    """
    values = {name: question_values(samples[name]) for name in tasks}
    strata: dict[tuple[str, str, str], Stratum] = {}
    rows = []
    for group in groups.values():
        rows += _group_rows(group, results, tasks, values, strata)
    for name, task in tasks.items():
        for key, label in labels(values[name]).items():
            value = float(results[name][",".join(key)])
            interval = metric_interval(key[0], values[name][key], _aggregation(task, key[0]), value)
            rows.append(_row(name, label, interval, _higher_is_better([task], key[0])))
    return rows


def _group_rows(
    group: Group,
    results: Mapping[str, Any],
    tasks: Mapping[str, Task],
    values: Mapping[str, Values],
    strata: dict[tuple[str, str, str], Stratum],
) -> list[dict[str, Any]]:
    by_size = {one.metric: one.weight_by_size for one in group.aggregate_metric_list or ()}
    keys = [
        (metric, filter_name)
        for metric, _, filter_name in (name.rpartition(",") for name in results.get(group.name, {}))
        if metric in by_size
    ]
    rows = []
    for key, label in labels(keys).items():
        members = [task.task_name for task in group.get_all_tasks() if key in values.get(task.task_name, {})]
        for name in members:
            if (name, *key) not in strata:  # MMLU's subjects belong to its four fields and to itself
                value = float(results[name][",".join(key)])
                strata[name, *key] = stratum(key[0], values[name][key], _aggregation(tasks[name], key[0]), value)
        found = [strata[name, *key] for name in members]
        sizes = [one.n if by_size[key[0]] else 1 for one in found]
        weights = [size / sum(sizes) for size in sizes]
        value = float(results[group.name][",".join(key)])
        higher = _higher_is_better([tasks[name] for name in members], key[0])
        rows.append(_row(group.name, label, group_interval(found, weights, value), higher))
    return rows


def _aggregation(task: Task, metric: str) -> Any:
    return task.aggregation().get(metric, mean)  # lm-eval's own fall-back


def _higher_is_better(tasks: Iterable[Task], metric: str) -> bool:
    """As the tasks' configurations say; by the metric's name where they say nothing or not the same."""
    said = {task.higher_is_better().get(metric) for task in tasks}
    [only] = said if len(said) == 1 else {None}
    return only if isinstance(only, bool) else is_higher_better(metric)


def _row(name: str, metric: str, interval: Interval, higher_is_better: bool) -> dict[str, Any]:
    ends = {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
    return {"task": name, "metric": metric, "group": "all", **ends, "higher_is_better": higher_is_better}
