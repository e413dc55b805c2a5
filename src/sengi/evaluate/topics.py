"""Own questions by topic, what was taught beside what was not: where new knowledge arrived, and where it did not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sengi.statistics.intervals import Interval, wilson_interval

TAUGHT_FIRST = ("taught", "control")


@dataclass(frozen=True)
class TopicTable:
    """Shares of right answers of one task.

    Attributes:
        task, metric: of the questions.
        groups: values of ``group``, ``taught`` and ``control`` first.
        topics: by topic, a share a group with its 95% interval (Wilson); None where there is no such question.
    """

    task: str
    metric: str
    groups: tuple[str, ...]
    topics: dict[str, tuple[Interval | None, ...]]


def by_topic(items: Iterable[Mapping[str, Any]]) -> list[TopicTable]:
    """A table for each task and metric whose questions have both a topic and a group.

    Args:
        items: as in :attr:`sengi.evaluation.Evaluation.items`.
    """
    found: dict[tuple[str, str], dict[tuple[str, str], list[int]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if item.get("topic") and item.get("group") and item.get("correct") in (0, 1):
            cell = found[str(item["task"]), str(item["metric"])][str(item["topic"]), str(item["group"])]
            cell.append(int(item["correct"]))
    return [_table(task, metric, cells) for (task, metric), cells in found.items()]


def _table(task: str, metric: str, cells: Mapping[tuple[str, str], list[int]]) -> TopicTable:
    names = {group for _, group in cells}
    groups = (*(name for name in TAUGHT_FIRST if name in names), *sorted(names.difference(TAUGHT_FIRST)))
    topics = {
        topic: tuple(_share(cells.get((topic, group))) for group in groups)
        for topic in sorted({topic for topic, _ in cells})
    }
    return TopicTable(task, metric, groups, topics)


def _share(right: list[int] | None) -> Interval | None:
    return wilson_interval(sum(right), len(right)) if right else None
