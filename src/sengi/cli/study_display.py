"""What a study looks like in a terminal: a live table, or one line an event where there is none (logs, pipes)."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.live import Live
from rich.text import Text

from sengi.cli.console import err
from sengi.cli.study_table import table
from sengi.study.scheduler import StudyObserver

MOST_ROWS = 40  # of a live table: the runs that are at work first
SHOWN_FIRST = ("running", "stopping", "failed", "finished", "stopped", "waiting")


class StudyDisplay(StudyObserver):
    """Draws the events of a study on stderr.

    Args:
        minimize: whether a lower score is better.
    """

    def __init__(self, minimize: bool) -> None:
        self._minimize = minimize
        self._live = Live(console=err, auto_refresh=False, transient=True) if err.is_terminal else None
        self._states: dict[str, str] = {}

    def __enter__(self) -> StudyDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def message(self, text: str) -> None:
        """A sentence above the table."""
        err.print(Text(f"note: {text}", style="yellow"), soft_wrap=True)

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Redraw the table; in a log, a line for each run whose state changed."""
        if self._live is not None:
            shown = sorted(rows, key=lambda row: (SHOWN_FIRST.index(row["state"]), row["name"]))[:MOST_ROWS]
            self._live.update(table(sorted(shown, key=lambda row: row["name"]), self._minimize), refresh=True)
            return
        for row in rows:
            if self._states.get(row["name"], "waiting") != row["state"]:
                score = "" if row["score"] is None else f", score {row['score']:.4f}"
                reason = f": {row['reason']}" if row["reason"] else ""
                err.print(
                    f"run {row['name']} {row['state']} at {row['samples_seen']:,} samples{score}{reason}",
                    markup=False,
                    soft_wrap=True,
                )
            self._states[row["name"]] = row["state"]
