"""``sengi train``: the plan, a live progress bar, the before/after table and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sengi.cli.console import is_first_process, out, unbreakable

if TYPE_CHECKING:
    from sengi.recipe_sources import ResolvedRecipe
    from sengi.report.scores import Comparison


def train(
    recipe: Path,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
) -> int:
    """Train a recipe. The same command on the same folder continues where it stopped.

    For several processes: ``torchrun --nproc-per-node 2 -m sengi train recipe.yaml``.

    Args:
        recipe: Recipe file (YAML).
        set_: key=value on top of the recipe; may be given several times.

    Returns:
        0 done, 2 bad input, 3 stopped by Ctrl-C or SIGTERM with the state saved, 1 failed.
    """
    from sengi.recipe_sources import resolve_recipe

    resolved = resolve_recipe(recipe, set_ or ())
    return run_training(resolved)


def run_training(resolved: ResolvedRecipe) -> int:
    """Train and show it; also what Python's ``sengi.train`` does without the showing."""
    from sengi.cli.train_display import TrainDisplay
    from sengi.report.trackers import Tracker
    from sengi.train.run import train as run

    first = is_first_process()
    trackers = [Tracker(name, resolved.recipe) for name in resolved.recipe.report_to] if first else []
    with unbreakable():
        with TrainDisplay(resolved.recipe, trackers) as display:
            result = run(resolved, display)
        if first:
            _print_end(result.folder, result.checkpoint)
    return 0


def _print_end(folder: Path, checkpoint: Path) -> None:
    from sengi.errors import InputError, StorageError
    from sengi.report.run_folder import read_run
    from sengi.report.scores import compare_scores

    if comparisons := [c for c in compare_scores(read_run(folder)) if _worth_a_line(c.before.group) and not c.part_of]:
        _print_scores(comparisons)
    out.print(f"model   {checkpoint}", soft_wrap=True, markup=False)
    try:
        from sengi.report.write import write_report

        out.print(f"report  {write_report(folder)[0]}", soft_wrap=True, markup=False)
    except (InputError, StorageError) as error:  # the model is trained; a page that cannot be drawn does not undo that
        out.print(f"report  not written: {error}", soft_wrap=True, markup=False)
    out.print(f"try it  sengi chat {checkpoint}", soft_wrap=True, markup=False)


def _worth_a_line(group: str) -> bool:
    """Topics and sources are for the report; the terminal shows the whole, taught against control, and phases."""
    return group == "all" or group.startswith(("group=", "phase="))


def _print_scores(comparisons: list[Comparison]) -> None:
    """Before and after, a line a task and group."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from sengi.report import formats

    table = Table(title="before and after training", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("task", "group"):
        table.add_column(column, no_wrap=True)
    for column in ("before", "after", "95% interval", "change", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for c in comparisons:
        metric = c.before.metric
        gap = c.after.value - c.before.value
        table.add_row(
            Text(f"{c.before.task} {metric.replace('_', ' ')}"),
            Text(c.before.group.partition("=")[2] or "all"),
            formats.score(c.before.value, metric),
            formats.score(c.after.value, metric),
            formats.interval(c.after.low, c.after.high, metric).replace(" to ", "–"),
            f"{gap:+.3f}" if metric == "loss" else formats.points(gap),
            f"{c.before.n:,}",
        )
    out.print(table)
