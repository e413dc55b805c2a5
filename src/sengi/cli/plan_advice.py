"""Advice and the measured noise scale, as ``sengi plan`` shows them."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sengi.cli.console import err, out

if TYPE_CHECKING:
    from sengi.recipe import Recipe
    from sengi.statistics.gradient_noise import NoiseScale
    from sengi.train.distributed import World
    from sengi.train.run_plan import RunPlan
    from sengi.train.setup import Setup


def advice_keys(plan: RunPlan, recipe: Recipe) -> set[str]:
    """Keys that the advice speaks of, so that nothing else has to."""
    from sengi.train.advice import advise

    return {advice.key for advice in advise(recipe, plan.to_dict())}


def advice_values(plan: RunPlan, recipe: Recipe) -> list[dict[str, Any]]:
    """The advice as JSON values."""
    from sengi.train.advice import advise

    return [asdict(advice) for advice in advise(recipe, plan.to_dict())]


def print_advice(plan: RunPlan, recipe: Recipe) -> None:
    """A line a value: what it is, what the evidence would have in its place, why, and how sure that is."""
    from rich.table import Table
    from rich.text import Text

    from sengi.train.advice import advise, less_sure

    values = plan.to_dict()
    why = less_sure(recipe, values)
    out.print(Text(f"advice{f' (one step less sure than its sources: {why})' if why else ''}", style="bold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for advice in advise(recipe, values):
        name = f"  {advice.phase}: {advice.key}" if advice.phase else f"  {advice.key}"
        value = f"{advice.value} → {advice.suggestion}" if advice.suggestion else advice.value
        text = Text(f"{value}: {advice.reason} ({advice.confidence}: {advice.source})")
        if advice.suggestion:
            text.stylize("yellow", 0, len(value))
        table.add_row(name, text)
    out.print(table)


def measure(setup: Setup, micro_batches: int, world: World) -> NoiseScale:
    """The gradient noise scale, with a line that says how far it is.

    Raises:
        InputError: it cannot be measured.
    """
    from sengi.train.probe import probe

    with err.status("loading the model") as status:

        def progress(done: int, total: int) -> None:
            status.update(f"measuring gradient noise: {done} of {total} micro-batches")

        return probe(setup, micro_batches, world, progress)


def probe_values(scale: NoiseScale, plan: RunPlan) -> dict[str, Any]:
    """The measurement as JSON values; null is infinite."""
    from sengi.train.advice import explain_probe

    finite = {key: value if math.isfinite(value) else None for key, value in asdict(scale).items()}
    return {**finite, "confidence": 0.95, "sentences": explain_probe(scale, _batches(plan))}


def print_probe(scale: NoiseScale, plan: RunPlan) -> None:
    """The measurement in words."""
    from rich.text import Text

    from sengi.train.advice import explain_probe

    out.print(Text("probe", style="bold"))
    for sentence in explain_probe(scale, _batches(plan)):
        out.print(Text(f"  {sentence}"))


def _batches(plan: RunPlan) -> list[int]:
    return [int(phase["effective_batch_size"]) for phase in plan.phases]
