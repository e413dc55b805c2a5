"""What a benchmark prints: a table for people, or the same as JSON with ``--json``."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Columns and rows under a title; notes say what was measured and how."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = field(default_factory=list)

    def text(self) -> str:
        """The table in monospaced text; numbers to the right."""
        cells = [list(map(_show, row)) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.columns, *cells, strict=True)]
        numeric = [all(isinstance(row[i], int | float) for row in self.rows) for i in range(len(self.columns))]

        def line(row: Sequence[str]) -> str:
            parts = zip(row, widths, numeric, strict=True)
            return "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in parts).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join(["", self.title, "", line(self.columns), rule, *map(line, cells), "", *self.notes])


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median wall time of ``work`` over ``repeats`` calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with ``--json`` and ``--repeats``."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--json", action="store_true", help="print JSON instead of tables")
    result.add_argument("--repeats", type=int, default=5, help="measurements of which the median is told")
    return result


def show(tables: Sequence[Table], as_json: bool) -> None:
    """Print tables."""
    print(json.dumps([asdict(table) for table in tables], indent=2) if as_json else "\n".join(t.text() for t in tables))
