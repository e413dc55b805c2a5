"""The tables that ``sengi eval`` prints."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sengi.cli.console import err, out

if TYPE_CHECKING:
    from sengi.evaluate.checkpoints import RunEvaluation
    from sengi.evaluate.run_scores import ScoreLine
    from sengi.evaluate.topics import TopicTable
    from sengi.evaluation import Evaluation
    from sengi.statistics.intervals import Interval

SHARES = ("acc", "exact_match", "accuracy", "mc1", "mc2", "prompt_level", "inst_level", "pass@")  # shown in percent
MOST_NAMES = 6  # of scores that are not printed


def print_scores(result: Evaluation, title: str) -> None:
    """Print one line a score, then what could not be scored and what a reader must know."""
    from rich.markup import escape
    from rich.table import Table

    from sengi.evaluate.topics import by_topic

    table = Table(title=escape(title), caption=f"{result.seconds:,.1f} s; 95% intervals")
    for column in ("task", "metric", "group"):
        table.add_column(column, overflow="fold")
    for column in ("score", "95% interval", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.scores:
        table.add_row(*(escape(row[key]) for key in ("task", "metric", "group")), *numbers(row))
    out.print(table)
    for topics in by_topic(result.items):
        _print_topics(topics)
    _print_remarks(result.excluded, result.notes)


def _print_topics(found: TopicTable) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{found.task}: {found.metric} by topic"), caption="95% intervals")
    table.add_column("topic", overflow="fold")
    for group in found.groups:
        table.add_column(escape(group), justify="right", no_wrap=True)
    for topic, shares in found.topics.items():
        cells = (
            "-" if one is None else f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%}, n={one.n:,})" for one in shares
        )
        table.add_row(escape(topic), *cells)
    out.print(table)


def numbers(row: dict[str, Any]) -> tuple[str, str, str]:
    """Value, interval and number of questions of a score as text."""
    if row["metric"].startswith(SHARES):
        one, two = f"{row['value']:.1%}", "{:.1%} to {:.1%}"
    else:
        one, two = f"{row['value']:.4g}", "{:.4g} to {:.4g}"
    known = row["low"] is not None and row["high"] is not None and row["low"] == row["low"]
    return one, two.format(row["low"], row["high"]) if known else "-", f"{row['n']:,}"


def print_run(result: RunEvaluation) -> None:
    """Print the scores of a run's checkpoints, a table a score, each with its best checkpoint; then what to know.

    Parts of the questions and the tasks of a group that has a score are counted only; what was chosen by is printed.
    """
    from rich.markup import escape
    from rich.table import Table

    inside = _inside(result)
    rest = []
    for line in result.lines:
        if line is not result.selected and (line.group != "all" or line.task in inside):
            rest.append(line.name)
            continue
        table = Table(title=escape(line.name), caption=escape(_choice(line)), caption_justify="left")
        for column in ("step", "samples seen", "score", "95% interval", "n"):
            table.add_column(column, justify="right", no_wrap=True)
        for point in [*([line.base] if line.base else []), *line.points]:
            row = {"metric": line.metric, **vars(point)}
            table.add_row(f"{point.step:,}" if point.step else "base", f"{point.samples_seen:,}", *numbers(row))
        out.print(table)
    if rest:
        named = ", ".join(rest[:MOST_NAMES]) + (", ..." if len(rest) > MOST_NAMES else "")
        where = f"all are in {result.run / 'evaluations'}; --select NAME prints one"
        out.print(f"{len(rest):,} scores of parts are not printed ({named}): {where}", markup=False, soft_wrap=True)
    chosen = result.selected.best or result.selected.naive
    step = f"step {chosen.step:,}" if chosen else result.selected.uncorrected
    out.print(f"chosen by {result.selected.name}: {step}", markup=False, soft_wrap=True)
    _print_remarks(result.excluded, result.notes)


def _inside(result: RunEvaluation) -> set[str]:
    """Tasks and groups that lie in a group with a score of its own."""
    found: set[str] = set()
    open_ = {part for line in result.lines for part in result.members.get(line.task, ())}
    while open_:
        found |= open_
        open_ = {part for name in open_ for part in result.members.get(name, ())} - found
    return found


def _choice(line: ScoreLine) -> str:
    """The best checkpoint in words: corrected where that can be done, the samples to the peak in any case."""
    if line.naive is None:
        return line.uncorrected
    peak = (
        f"peak at step {line.naive.step:,} after {line.naive.samples_seen:,} samples, {_value(line, line.naive.score)}"
        " (best of all checkpoints on all questions: not corrected)"
    )
    if line.best is None or line.swapped is None:
        return f"{peak}; no corrected choice: {line.uncorrected}"
    sure = "" if line.swapped.step == line.best.step else f"; the other half chooses step {line.swapped.step:,}"
    early = ""
    if line.within_noise is not None and line.within_noise.step < line.naive.step:
        early = f"; not shown to be worse: step {line.within_noise.step:,} already"
    chosen = (
        f"best checkpoint: step {line.best.step:,}, {_value(line, line.best.score)} on questions it was not chosen on"
    )
    return f"{chosen}{sure}; {peak}{early}"


def _value(line: ScoreLine, score: Interval) -> str:
    row = {"metric": line.metric, "value": score.value, "low": score.low, "high": score.high, "n": score.n}
    value, interval, _ = numbers(row)
    return f"{value} ({interval})"


def _print_remarks(excluded: list[dict[str, Any]], notes: list[str]) -> None:
    for (task, reason), count in Counter((row["task"], row["reason"]) for row in excluded).items():
        err.print(f"not scored: {count:,} of {task}: {reason}", markup=False, style="yellow", soft_wrap=True)
    for note in notes:
        err.print(f"note: {note}", markup=False, soft_wrap=True)
