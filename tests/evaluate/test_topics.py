from __future__ import annotations

from typing import Any

import pytest

from sengi.evaluate.topics import by_topic
from sengi.statistics.intervals import wilson_interval


def item(topic: str, group: str, correct: float, task: str = "own") -> dict[str, Any]:
    return {"task": task, "metric": "exact_match", "topic": topic, "group": group, "correct": correct}


def test_taught_stands_beside_control_in_every_topic() -> None:
    items = [item("people", "taught", 1)] * 3 + [item("people", "control", 0)] * 2 + [item("cities", "taught", 0)]
    items += [item("cities", "other", 1), item("", "taught", 1), item("cities", "", 1)]  # the last two have no place
    [table] = by_topic(items)
    assert (table.task, table.metric, table.groups) == ("own", "exact_match", ("taught", "control", "other"))
    assert list(table.topics) == ["cities", "people"]
    assert table.topics["people"] == (wilson_interval(3, 3), wilson_interval(0, 2), None)
    assert table.topics["cities"] == (wilson_interval(0, 1), None, wilson_interval(1, 1))


@pytest.mark.parametrize("items", [[], [item("people", "", 1)], [item("", "taught", 1)], [item("a", "b", 0.5)]])
def test_without_both_there_is_no_table(items: list[dict[str, Any]]) -> None:
    assert by_topic(items) == []
