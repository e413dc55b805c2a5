"""The runs of a study as a table for people."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from sengi.cli.console import out
from sengi.study.space import settings_text

STYLES = {"finished": "green", "running": "cyan", "stopping": "yellow", "stopped": "yellow", "failed": "red"}


def table(rows: list[dict[str, Any]], minimize: bool) -> Table:
    """The runs as people read them, the best finished one marked."""
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("run", no_wrap=True)
    drawn.add_column("settings", min_width=10)  # the other columns fit into 80 beside so many
    drawn.add_column("state", no_wrap=True)
    for column in ("samples", "loss", "grad norm", "score"):
        drawn.add_column(column, justify="right", no_wrap=True)
    drawn.add_column("verdict", no_wrap=True)
    scores = [row["score"] for row in rows if row["score"] is not None]
    best = (min(scores) if minimize else max(scores)) if scores else None
    for row in rows:
        score = Text(_number(row["score"]), style="bold green" if row["score"] == best and best is not None else "")
        drawn.add_row(
            row["name"],
            Text(settings_text(row["settings"])),
            Text(row["state"], style=STYLES.get(row["state"], "")),
            f"{row['samples_seen']:,}",
            _number(row["loss"]),
            _number(row["grad_norm"]),
            score,
            row["verdict"] or "",
        )
    return drawn


def print_runs(rows: list[dict[str, Any]], minimize: bool) -> None:
    """The table of a study, or one for each of its stages."""
    for stage in dict.fromkeys(row["name"].rpartition("/")[0] for row in rows):
        own = [row for row in rows if row["name"].rpartition("/")[0] == stage]
        drawn = table([{**row, "name": row["name"].rpartition("/")[2]} for row in own], minimize)
        drawn.title, drawn.title_justify = stage or None, "left"
        out.print(drawn)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
