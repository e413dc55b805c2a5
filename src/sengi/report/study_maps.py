"""The grid of a study as heat maps, and the colours by which everything in its report is told good from bad."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sengi.study.ranking import RankedSetting
from sengi.study.space import settings_text

MOST_FACETS = 6
BEST, WORST, MIDDLE = (45, 120, 190), (215, 120, 30), (140, 140, 140)  # readable on white and on black


@dataclass(frozen=True)
class Cell:
    """One place of a heat map: its mean score, and its rank among all settings from 0 (worst) to 1 (best)."""

    score: float
    rank: float


@dataclass(frozen=True)
class HeatMap:
    """Mean scores over two keys.

    Attributes:
        title: the values of the other keys, empty without any.
        row_key, column_key: the keys; ``column_key`` is empty where there is only one.
        rows, columns: their values as text.
        cells: by row and column; None where no run has a score.
        note: what was averaged; may be empty.
    """

    title: str
    row_key: str
    rows: tuple[str, ...]
    column_key: str
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell | None, ...], ...]
    note: str = ""


def colour(rank: float) -> str:
    """From orange (worst, 0) over grey to blue (best, 1), as ``#rrggbb``."""
    low, high, share = (WORST, MIDDLE, 2 * rank) if rank < 0.5 else (MIDDLE, BEST, 2 * rank - 1)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(low, high, strict=True))


def ranks(count: int) -> list[float]:
    """Ranks of so many sorted things, best first: 1 to 0."""
    return [1 - place / (count - 1) if count > 1 else 1.0 for place in range(count)]


def heat_maps(ranked: Sequence[RankedSetting], keys: Sequence[str]) -> list[HeatMap]:
    """The scores over the two keys with the most values, a map for each combination of the others.

    Args:
        ranked: settings with a score, best first.
        keys: of the space, all of them lists.

    Returns:
        Empty with fewer than two settings. With more than six combinations of other keys one map of means over them.
    """
    values = {key: _values(ranked, key) for key in keys}
    varied = sorted((key for key in keys if len(values[key]) > 1), key=lambda key: -len(values[key]))
    if not varied:
        return []
    row_key, column_key, rest = varied[0], (varied[1] if len(varied) > 1 else ""), varied[2:]
    place = {one.point: rank for one, rank in zip(ranked, ranks(len(ranked)), strict=True)}
    facets = list(itertools.product(*(values[key] for key in rest)))
    if len(facets) > MOST_FACETS:
        note = f"Each number is the mean over {', '.join(rest)}."
        return [_map(ranked, place, row_key, column_key, values, "", note)]
    maps = []
    for facet in facets:
        chosen = dict(zip(rest, facet, strict=True))
        inside = [one for one in ranked if all(_text(one, key) == value for key, value in chosen.items())]
        title = ", ".join(f"{key} {value}" for key, value in chosen.items())
        maps.append(_map(inside, place, row_key, column_key, values, title, ""))
    return maps


def _map(
    ranked: Sequence[RankedSetting],
    place: dict[int, float],
    row_key: str,
    column_key: str,
    values: dict[str, list[str]],
    title: str,
    note: str,
) -> HeatMap:
    columns = values[column_key] if column_key else [""]
    cells = []
    for row in values[row_key]:
        line = []
        for column in columns:
            inside = [
                one
                for one in ranked
                if _text(one, row_key) == row and (not column_key or _text(one, column_key) == column)
            ]
            scores, shares = [one.score.value for one in inside], [place[one.point] for one in inside]
            line.append(Cell(float(np.mean(scores)), float(np.mean(shares))) if inside else None)
        cells.append(tuple(line))
    return HeatMap(title, row_key, tuple(values[row_key]), column_key, tuple(columns), tuple(cells), note)


def _values(ranked: Sequence[RankedSetting], key: str) -> list[str]:
    """The values of a key as text: numbers rising, others by the number of their first point."""
    found: dict[str, Any] = {}
    for one in sorted(ranked, key=lambda one: one.point):
        found.setdefault(_text(one, key), one.settings[key])
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in found.values()):
        return sorted(found, key=lambda text: float(found[text]))
    return list(found)


def _text(one: RankedSetting, key: str) -> str:
    value = one.settings[key]
    shown = settings_text({key: value}).removeprefix(f"{key} ")
    return shown if not isinstance(value, dict | list) else json.dumps(value, ensure_ascii=False)
