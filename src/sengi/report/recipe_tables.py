"""The recipe against the paper's defaults, and the throughput of a run, as tables."""

from __future__ import annotations

import math
import shlex
from typing import Any

import numpy as np

from sengi.report import formats
from sengi.report.paper import PAPER, PaperValue, paper_values
from sengi.report.run_folder import RunFolder, as_mapping, as_number
from sengi.report.tables import Row, Table, facts_table

FORECASTS = {
    "forecast_seconds": "training time, forecast",
    "checkpoint_bytes": "size of a checkpoint, forecast",
    "disk_bytes": "disk for all checkpoints kept, forecast",
}


def paper_table(run: RunFolder) -> Table:
    """Every setting that the paper speaks of, as this run had it and as the paper has it."""
    if not run.recipe:
        return Table("Recipe and paper", (), ())
    rows = tuple(_paper_row(run, value) for value in paper_values(str(run.recipe.get("model_name_or_path", ""))))
    same = sum(row.kind == "same" for row in rows)
    head = ("key", "this run", "origin", "paper", "same?", "how sure", "source")
    note = (
        f"{same} of {len(rows)} as in {PAPER}, which trained models of 3B to 7B, with one seed a setting. Different is "
        "not wrong: a smaller model or data set may need other values."
    )
    return Table("The recipe against the paper", head, rows, (), note)


def recipe_table(run: RunFolder) -> Table:
    """The keys that the paper does not speak of, with origin and reason."""
    spoken = {value.key for value in paper_values("")}
    reasons = as_mapping(run.plan.get("reasons"))
    rows = tuple(
        Row((key, formats.setting(value) or "(empty)", _origin(run, key), str(reasons.get(key) or "")))
        for key, value in run.recipe.items()
        if key not in spoken
    )
    return Table("The rest of the recipe", ("key", "value", "origin", "reason"), rows)


def _paper_row(run: RunFolder, paper: PaperValue) -> Row:
    value = _in_use(run, paper.key)
    asked = run.recipe.get(paper.key, value)
    shown = formats.setting(value) if asked == value else f"{formats.setting(asked)}: {formats.setting(value)}"
    kind = "open" if value in (None, "auto") else "same" if paper.same(value) else "different"
    source = paper.source + (f"; {paper.note}" if paper.note else "")
    mark = {"same": "same", "different": "different", "open": "by hardware" if value == "auto" else "not set"}[kind]
    cells = (paper.key, shown, _origin(run, paper.key), paper.value, mark, paper.sure, source)
    return Row(cells, kind)


def _in_use(run: RunFolder, key: str) -> Any:
    """The value that the run worked with; ``auto`` is what the plan made of it."""
    value = run.recipe.get(key)
    if key == "strategy" and value is None:  # of a run before there was this key
        return "stacked"
    planned = run.plan.get(key)
    if value == "auto" and isinstance(planned, (str, int)):
        return planned.removeprefix("torch.") if isinstance(planned, str) else planned
    return value


def _origin(run: RunFolder, key: str) -> str:
    return str(as_mapping(run.plan.get("origins")).get(key) or formats.NOTHING)


def throughput_table(run: RunFolder) -> Table:
    """Speed, memory and packing, from the step records and the plan."""
    d = run.dynamics
    seconds = _total(d, "step_seconds")
    tokens, supervised = _total(d, "num_tokens"), _total(d, "num_supervised_tokens")
    facts = [
        ("tokens per second, median step", formats.count(_median(d, "tokens_per_second"))),
        ("model FLOPs utilisation, median step", formats.percent(_median(d, "mfu"))),
        ("seconds a step, median", formats.number(_median(d, "step_seconds"), 3)),
        ("time in steps", formats.duration(seconds)),
        ("waiting for data", formats.percent(_total(d, "data_wait_seconds") / seconds if seconds else math.nan, 2)),
        ("peak memory of a device", formats.memory(_largest(d, "peak_memory_bytes"))),
        ("tokens processed", formats.count(tokens)),
        ("of which supervised", formats.percent(supervised / tokens if tokens else math.nan)),
        ("packs a step, planned", formats.number(as_number(run.plan.get("packs_per_step")), 3)),
        ("fill of the packs, planned", formats.percent(as_number(run.plan.get("pack_fill")), 2)),
        ("processes", formats.count(_world_size(run))),
    ]
    forecast = as_mapping(run.plan.get("forecast"))
    facts += [(FORECASTS.get(key, key.replace("_", " ")), _forecast(key, value)) for key, value in forecast.items()]
    return facts_table("Throughput", facts)


def _forecast(key: str, value: Any) -> str:
    """A forecast in the unit that its key ends with."""
    if key.endswith("seconds"):
        return formats.duration(as_number(value))
    if key.endswith("bytes"):
        return formats.memory(as_number(value))
    return formats.setting(value)


def commands(run: RunFolder) -> list[tuple[str, str]]:
    """What to type to get this run again and to look into it: (purpose, command)."""
    folder = shlex.quote(str(run.path))
    recipe = shlex.quote(str(run.path / "recipe.yaml"))
    size = _world_size(run)
    start = f"torchrun --nproc-per-node {size:.0f} -m sengi" if math.isfinite(size) and size > 1 else "sengi"
    last = run.path / f"checkpoint-{run.checkpoints[-1]}" if run.checkpoints else None
    lines = [
        ("The same run in a new folder", f"{start} train {recipe} --set output_dir=again"),
        ("Continue this run, or check that it is complete", f"{start} train {recipe}"),
        ("The samples of a step, in order", f"sengi data ledger {folder} --step 1"),
    ]
    if last:
        lines.append(("Talk to the last checkpoint", f"sengi chat {shlex.quote(str(last))}"))
    return lines


def _world_size(run: RunFolder) -> float:
    size = as_number(run.status.get("world_size"))
    return size if math.isfinite(size) else as_number(run.plan.get("world_size"))


def _finite(dynamics: dict[str, Any], key: str) -> Any:
    column = dynamics.get(key, np.array([]))
    return column[np.isfinite(column)]


def _total(dynamics: dict[str, Any], key: str) -> float:
    column = _finite(dynamics, key)
    return float(column.sum()) if column.size else math.nan


def _median(dynamics: dict[str, Any], key: str) -> float:
    column = _finite(dynamics, key)
    return float(np.median(column)) if column.size else math.nan


def _largest(dynamics: dict[str, Any], key: str) -> float:
    column = _finite(dynamics, key)
    return float(column.max()) if column.size else math.nan
