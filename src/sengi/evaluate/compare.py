"""Compare evaluations of the same questions: what differs, how sure that is, and what could have been found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sengi.errors import InputError
from sengi.evaluate.same_questions import check_same_questions, missing_parts, shared_questions
from sengi.evaluate.saved_samples import LABELS, SavedSamples, TaskResults
from sengi.statistics.differences import PairedDifference, holm, paired_difference
from sengi.statistics.intervals import Interval, bootstrap_interval, ratio_error
from sengi.statistics.power import minimal_detectable_difference

Verdict = Literal["better", "worse", "no difference shown"]
LEVEL = 0.05
POWER = 0.8
MATCHES = 1e-6  # a group's score is recognised by its value; results files keep all digits


@dataclass(frozen=True, slots=True)
class Row:
    """One task, metric and pair of evaluations.

    Attributes:
        task, metric: their names; ``task`` may be a group of tasks.
        part: of a part of a row: the task in the group, or the column and value (``group=taught``); else empty.
        baseline, other: positions of the two evaluations in the comparison.
        before, after: their scores over the ``n`` shared questions.
        paired: other minus baseline, with its 95% interval and p.
        bootstrap: the paired bootstrap's interval of the same difference; None where the questions weigh differently.
            ``paired.difference`` holds the one with the best coverage for the kind of result.
        spread: share of the questions whose result changed (0/1 results), else the standard deviation of the change.
        p_holm: p corrected for all rows of its kind (whole rows, or parts).
        detectable: the smallest true difference that the test finds 4 times in 5 at the level 0.05 divided by the
            number of rows, which is Holm's strictest step; NaN where it would find none.
        higher_is_better: of the metric.
        is_share: all results are between 0 and 1, and more is better.
        left_out: questions that one of the two could not score.
        verdict: of the other against the baseline, by ``p_holm``.
    """

    task: str
    metric: str
    part: str
    baseline: int
    other: int
    before: float
    after: float
    paired: PairedDifference
    bootstrap: Interval | None
    spread: float
    higher_is_better: bool
    is_share: bool
    left_out: int
    p_holm: float = math.nan
    detectable: float = math.nan
    verdict: Verdict = "no difference shown"


@dataclass(slots=True)
class Comparison:
    """Evaluations against the first of them.

    Attributes:
        names: what each was read from.
        rows: tasks that stand alone, and outermost groups.
        parts: tasks inside groups, and questions by group, topic, source and phase.
        not_compared: what only some of them hold or what has no result a question, a sentence each.
    """

    names: list[str]
    rows: list[Row] = field(default_factory=list)
    parts: list[Row] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Results of the same questions in two evaluations, shape (n,), before they become a row."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    weights: NDArray[np.float64]
    left_out: int


def compare(evaluations: Sequence[SavedSamples]) -> Comparison:
    """Compare each evaluation with the first, question by question.

    Args:
        evaluations: two or more.

    Raises:
        InputError: fewer than two, no task in common, or other questions or prompts under the same task name; the
            message says which.
    """
    if len(evaluations) < 2:
        raise InputError("nothing to compare: give two or more evaluations, the first is the baseline")
    comparison = Comparison([str(one.path) for one in evaluations])
    first = evaluations[0]
    for position, other in enumerate(evaluations[1:], start=1):
        check_same_questions(first, other)
        comparison.not_compared += missing_parts(first, other)
        _add_rows(comparison, first, other, position)
    if not comparison.rows:
        raise InputError(f"{first.path}: no task and metric in common with the others; {comparison.not_compared[0]}")
    comparison.rows = _judge(comparison.rows)
    comparison.parts = _judge(comparison.parts)
    return comparison


def _add_rows(comparison: Comparison, first: SavedSamples, other: SavedSamples, position: int) -> None:
    """Rows of one pair: outermost groups with their tasks as parts, then the tasks that stand alone."""
    tasks = [task for task in first.tasks if task in other.tasks]
    pairs = {task: _pairs_of(first.tasks[task], other.tasks[task]) for task in tasks}
    grouped: set[str] = set()
    for group in _outermost(first, other):
        leaves = first.groups[group]
        wholes = {metric: _whole(group, metric, pairs, first, other) for metric in _metrics(leaves, pairs)}
        for metric, whole in wholes.items():
            if whole is None:
                note = "no score of it that is a mean over its questions in both; its tasks are compared one by one"
                comparison.not_compared.append(f"{group}, {metric}: {note}")
        if not any(wholes.values()):
            continue
        grouped.update(leaves)
        for metric, whole in wholes.items():
            having = [leaf for leaf in leaves if metric in pairs[leaf]]
            better = first.tasks[having[0]].higher_is_better[metric]
            if whole:
                comparison.rows.append(_row(group, metric, "", position, whole, better))
            for leaf in having:
                comparison.parts.append(_row(group, metric, leaf, position, pairs[leaf][metric], better))
    for task in [task for task in tasks if task not in grouped]:
        results = first.tasks[task]
        for metric, pair in pairs[task].items():
            better = results.higher_is_better[metric]
            comparison.rows.append(_row(task, metric, "", position, pair, better))
            for label, ids in _labelled(results, shared_questions(results, other.tasks[task], metric)):
                part = _pairs(results, other.tasks[task], metric, ids)
                comparison.parts.append(_row(task, metric, label, position, part, better))


def _pairs_of(first: TaskResults, other: TaskResults) -> dict[str, _Pairs]:
    """Paired results of every metric that both have."""
    found = {}
    for metric in first.metrics:
        if metric in other.metrics and (ids := shared_questions(first, other, metric)):
            found[metric] = _pairs(first, other, metric, ids)
    return found


def _pairs(first: TaskResults, other: TaskResults, metric: str, ids: Sequence[str]) -> _Pairs:
    before, after = first.metrics[metric], other.metrics[metric]
    rows = np.array([(before[id_][0], after[id_][0], before[id_][1]) for id_ in ids], dtype=np.float64)
    chosen = set(ids)
    left_out = len([id_ for id_ in (first.excluded | other.excluded) - chosen if id_ in before or id_ in after])
    return _Pairs(rows[:, 0], rows[:, 1], rows[:, 2], left_out)


def _metrics(tasks: Sequence[str], pairs: dict[str, dict[str, _Pairs]]) -> list[str]:
    return list(dict.fromkeys(metric for task in tasks for metric in pairs[task]))


def _whole(
    group: str, metric: str, pairs: dict[str, dict[str, _Pairs]], first: SavedSamples, other: SavedSamples
) -> _Pairs | None:
    """The questions of a group's tasks together, weighted so that their means are the group's two scores; else None.

    Groups are averaged by questions or by tasks. Which it is, is seen from the score that was written.
    """
    parts = [pairs[leaf][metric] for leaf in first.groups[group] if metric in pairs[leaf]]
    joined = _Pairs(
        np.concatenate([part.before for part in parts]),
        np.concatenate([part.after for part in parts]),
        np.concatenate([part.weights for part in parts]),
        sum(part.left_out for part in parts),
    )
    by_task = np.concatenate([part.weights / part.weights.sum() for part in parts])
    scores = [one.group_scores[group].get(metric, math.nan) for one in (first, other)]
    for weights in (joined.weights, by_task * len(by_task) / len(parts)):
        means = [float(np.average(values, weights=weights)) for values in (joined.before, joined.after)]
        if all(abs(mean - score) < MATCHES for mean, score in zip(means, scores, strict=True)):
            return replace(joined, weights=weights)
    return None


def _outermost(first: SavedSamples, other: SavedSamples) -> list[str]:
    """Groups that both hold with the same tasks and that lie in no larger one."""
    both = [
        group
        for group, leaves in first.groups.items()
        if other.groups.get(group) == leaves and all(leaf in other.tasks for leaf in leaves)
    ]
    inside = {
        small
        for small in both
        for large in both
        if small != large and set(first.groups[small]) < set(first.groups[large])
    }
    taken: set[str] = set()
    chosen = []
    for group in both:
        if group not in inside and not taken & set(first.groups[group]):
            taken |= set(first.groups[group])
            chosen.append(group)
    return chosen


def _labelled(results: TaskResults, ids: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
    """Questions by the values of each column that tells them apart."""
    for column in LABELS:
        values = sorted({results.labels.get(id_, {}).get(column, "") for id_ in ids} - {""})
        for value in values if len(values) > 1 else ():
            yield f"{column}={value}", [id_ for id_ in ids if results.labels[id_].get(column) == value]


def _row(task: str, metric: str, part: str, other: int, pairs: _Pairs, higher_is_better: bool) -> Row:
    before, after, weights = pairs.before, pairs.after, pairs.weights
    change, values = after - before, np.concatenate((before, after))
    weighted = np.ptp(weights) > 0
    paired = paired_difference(before, after, weights=weights if weighted else None)
    if paired.method == "score":
        spread = (paired.gained + paired.lost) / len(change)
    elif len(change) == 1:
        spread = math.nan
    else:
        spread = float(ratio_error(change, weights)) * math.sqrt(len(change))
    return Row(
        task=task,
        metric=metric,
        part=part,
        baseline=0,
        other=other,
        before=float(np.average(before, weights=weights)),
        after=float(np.average(after, weights=weights)),
        paired=paired,
        bootstrap=None
        if weighted
        else paired.difference
        if paired.method == "bootstrap"
        else bootstrap_interval(change),
        spread=spread,
        higher_is_better=higher_is_better,
        is_share=bool(higher_is_better and values.min() >= 0 and values.max() <= 1),
        left_out=pairs.left_out,
    )


def _judge(rows: Sequence[Row]) -> list[Row]:
    """Rows of one family of tests with Holm's p, the verdict and the detectable difference."""
    judged = []
    for row, p in zip(rows, holm([row.paired.p_value for row in rows]), strict=True):
        kind = "discordant" if row.paired.method == "score" else "sd"
        known = math.isfinite(row.spread)
        n, alpha = row.paired.difference.n, LEVEL / len(rows)
        detectable = (
            minimal_detectable_difference(n, power=POWER, alpha=alpha, **{kind: row.spread}) if known else math.nan
        )
        verdict: Verdict = "no difference shown"
        if p < LEVEL:
            verdict = "better" if (row.paired.difference.value > 0) == row.higher_is_better else "worse"
        judged.append(replace(row, p_holm=p, verdict=verdict, detectable=detectable))
    return judged
