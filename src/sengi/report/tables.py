"""The tables of a report as plain text cells: the page and the Markdown print the same ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sengi.evaluate.topics import by_topic
from sengi.report import formats
from sengi.report.run_folder import RunFolder, as_mapping, as_number
from sengi.report.scores import Comparison
from sengi.statistics.intervals import Interval

MILESTONES = 11


@dataclass(frozen=True, slots=True)
class Row:
    """One row; ``kind`` is a word for the style sheet (``control``, ``same``, ``different``, ...)."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text.

    Attributes:
        title: heading above it.
        head: column names.
        rows: the rows; as many cells as columns.
        numeric: positions of columns that are set flush right.
        note: a sentence below it; may be empty.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    numeric: tuple[int, ...] = ()
    note: str = ""


def score_tables(comparisons: list[Comparison]) -> list[Table]:
    """One table a task and metric: each group before and after, with the paired difference.

    The tasks of a group of tasks share one table a metric.
    """
    tables = []
    for key in dict.fromkeys(map(_table_key, comparisons)):
        chosen = [c for c in comparisons if _table_key(c) == key]
        first, last = min(c.step_before for c in chosen), max(c.step_after for c in chosen)
        task, metric, is_part = key
        steps = f"before (step {first:,})", f"after (step {last:,})"
        head = ("task" if is_part else "group", *steps, "difference", "p", "n", "change")
        rows = tuple(Row(_score_cells(c), "control" if c.is_control else "") for c in chosen)
        title = f"{task}{', its tasks' if is_part else ''}: {formats.metric(metric)}"
        tables.append(Table(title, head, rows, (1, 2, 3, 4, 5), _score_note(chosen)))
    return tables


def topic_tables(run: RunFolder) -> list[Table]:
    """Own questions at the last evaluation that has them: each topic with what was taught beside what was not."""
    last: dict[str, list[dict[str, Any]]] = {}
    for evaluation in run.evaluations:
        now: dict[str, list[dict[str, Any]]] = {}
        for item in evaluation.items.values():
            now.setdefault(str(item.get("task")), []).append(item)
        last |= now
    tables = []
    for found in by_topic(item for items in last.values() for item in items):
        rows = tuple(
            Row((topic, *(formats.NOTHING if one is None else _share(one) for one in shares)))
            for topic, shares in found.topics.items()
        )
        title = f"{found.task} by topic: {formats.metric(found.metric)}"
        note = "At the last evaluation; 95% intervals, n questions."
        tables.append(Table(title, ("topic", *found.groups), rows, tuple(range(1, len(found.groups) + 1)), note))
    return tables


def _share(share: Interval) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}), n={share.n:,}"


def _table_key(c: Comparison) -> tuple[str, str, bool]:
    return c.part_of or c.before.task, c.before.metric, bool(c.part_of)


def _score_cells(c: Comparison) -> tuple[str, ...]:
    metric = c.before.metric
    name = c.before.group
    if c.part_of:
        name = c.before.task + ("" if name == "all" else f", {name}")
    before, after = (_with_interval(s.value, s.low, s.high, metric) for s in (c.before, c.after))
    n = formats.count(c.after.n)
    if c.change == "one evaluation only":
        return name, before, formats.NOTHING, formats.NOTHING, formats.NOTHING, n, c.change
    if c.paired is None:
        difference = formats.difference(c.after.value - c.before.value, metric)
        return name, before, after, difference, formats.NOTHING, n, c.change
    d = c.paired.difference
    difference = f"{formats.difference(d.value, metric)} ({formats.difference_interval(d.low, d.high, metric)})"
    return name, before, after, difference, formats.p_value(c.paired.p_value), n, c.change


def _with_interval(value: float, low: float, high: float, metric: str) -> str:
    ends = formats.interval(low, high, metric)
    return formats.score(value, metric) + (f" ({ends})" if ends else "")


def _score_note(chosen: list[Comparison]) -> str:
    notes = ["In brackets: 95% intervals as the evaluation wrote them."]
    if any(c.paired for c in chosen):
        notes.append(
            "Differences are over the same questions (right or wrong: Tango's score interval, McNemar's exact p; loss: "
            "jackknife, sign flips), p not corrected for the number of rows."
        )
    if any(c.is_control for c in chosen):
        notes.append("Control questions ask for facts that the training data never states: they should not move.")
    return " ".join(notes)


def milestone_table(run: RunFolder) -> Table:
    """The curves in numbers: up to eleven steps from the first to the last."""
    at = np.unique(np.linspace(0, run.steps - 1, min(MILESTONES, run.steps)).round().astype(int)) if run.steps else ()
    d = run.dynamics
    rows = tuple(
        Row(
            (
                formats.count(d["step"][i]),
                formats.number(d["epoch"][i], 3),
                formats.count(d["samples_seen"][i]),
                formats.number(d["loss"][i]),
                formats.number(d["grad_norm"][i]),
                formats.number(d["learning_rate"][i], 3),
            )
        )
        for i in at
    )
    head = ("step", "epoch", "samples seen", "loss", "gradient norm", "learning rate")
    note = "Single steps, not averages. The gradient norm is the one before clipping."
    return Table("The curves in numbers", head, rows, tuple(range(6)), note)


def data_tables(run: RunFolder) -> list[Table]:
    """Sources, phases, and what was dropped and why; only those that the plan holds."""
    data = as_mapping(run.plan.get("data"))
    tables = [
        _share_table(title, as_mapping(data.get(key))) for title, key in (("Sources", "sources"), ("Phases", "phases"))
    ]
    dropped = {reason: as_number(count) for reason, count in as_mapping(data.get("dropped")).items()}
    truncated = as_number(data.get("truncated"))
    rows = [Row((f"dropped: {reason.replace('_', ' ')}", formats.count(count))) for reason, count in dropped.items()]
    if math.isfinite(truncated):
        rows.append(Row(("truncated to max_length", formats.count(truncated))))
    note = "Each one is listed by row with sengi data check."
    tables.append(Table("Left out or cut", ("reason", "samples"), tuple(rows), (1,), note))
    return [table for table in tables if table.rows]


def _share_table(title: str, parts: dict[str, Any]) -> Table:
    keys = ("samples", "tokens", "supervised_tokens")
    counts = {name: [as_number(as_mapping(part).get(key)) for key in keys] for name, part in parts.items()}
    total = float(np.nansum([tokens[2] for tokens in counts.values()])) if counts else math.nan
    rows = tuple(
        Row(
            (
                name or "(no name)",
                *map(formats.count, values),
                formats.percent(values[2] / total if total else math.nan),
            )
        )
        for name, values in counts.items()
    )
    head = (title.lower().removesuffix("s"), "samples", "tokens", "supervised tokens", "share of the loss")
    return Table(title, head, rows, (1, 2, 3, 4))


def facts_table(title: str, facts: Iterable[tuple[str, str]], note: str = "") -> Table:
    """Names and values in two columns; rows without a value are left out."""
    rows = tuple(Row(fact) for fact in facts if fact[1] not in ("", formats.NOTHING))
    return Table(title, ("", ""), rows, (), note)


def environment_table(run: RunFolder) -> Table:
    """environment.json, nested names joined by dots."""
    return facts_table("Environment", _flat(run.environment))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(as_mapping(value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", formats.setting(value) if not isinstance(value, int) else str(value)
