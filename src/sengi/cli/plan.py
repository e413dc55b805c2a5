"""``sengi plan``: the arithmetic of a run, printed before anything is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sengi.cli import plan_advice
from sengi.cli.console import counting, out

if TYPE_CHECKING:
    from sengi.recipe import Recipe
    from sengi.train.run_plan import RunPlan


def plan(
    recipe: Path,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    probe: int | None = None,
    json: bool = False,
) -> int:
    """Show what a run will do and need, what the evidence says about it, and what it would change.

    Args:
        recipe: Recipe file (YAML).
        set_: key=value on top of the recipe; may be given several times.
        probe: Measure the gradient noise of the model on the data with so many micro-batches (8 or more), which tells
            the batch size at which noise stops to matter. Loads the model, trains nothing.
        json: Print one JSON object instead: the plan, its advice and the measurement.
    """
    import json as json_module

    from sengi.recipe_sources import resolve_recipe
    from sengi.train.distributed import start_world
    from sengi.train.run_folder import read_plan
    from sengi.train.setup import set_up

    resolved, world = resolve_recipe(recipe, set_ or ()), start_world()
    with counting() as observer:
        setup = set_up(resolved, world, observer, read_plan(Path(resolved.recipe.output_dir)))
    scale = plan_advice.measure(setup, probe, world) if probe is not None else None
    if json:
        values = setup.plan.to_dict() | {"advice": plan_advice.advice_values(setup.plan, resolved.recipe)}
        if scale is not None:
            values["probe"] = plan_advice.probe_values(scale, setup.plan)
        out.file.write(json_module.dumps(values, ensure_ascii=False) + "\n")
        return 0
    print_plan(setup.plan, resolved.recipe)
    if scale is not None:
        plan_advice.print_probe(scale, setup.plan)
    return 0


def print_plan(plan: RunPlan, recipe: Recipe) -> None:
    """The plan as people read it: every product written out, every default with its reason."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in plan_lines(plan, recipe):
        table.add_row(name, Text(value))
    out.print(table)
    for warning in plan.warnings:
        out.print(Text(f"note: {warning}", style="yellow"))
    plan_advice.print_advice(plan, recipe)


def plan_lines(plan: RunPlan, recipe: Recipe) -> list[tuple[str, str]]:
    """Name and sentence of each line of the plan."""
    from sengi.report.formats import duration

    gigabytes = 1e9
    lines = [
        ("model", f"{recipe.model_name_or_path}, {plan.parameters / 1e6:,.1f}M parameters"),
        *_adapter_lines(plan, recipe),
        ("data", f"{plan.samples:,} samples" + _weighted(plan)),
        *_order_lines(plan, recipe),
        (
            "micro-batches",
            f"{plan.packs_per_step:,.1f} packs a step on {plan.world_size} x {plan.device}, at most "
            f"{plan.max_tokens_per_device:,} tokens each, {plan.pack_fill:.1%} full",
        ),
        (
            "tokens",
            f"{plan.tokens:,}, of which {plan.supervised_tokens:,} supervised "
            f"({plan.supervised_tokens / plan.tokens:.0%})",
        ),
        ("compute", f"{plan.flops:.3g} FLOP in {plan.dtype}, trained weights and optimizer in float32"),
        (
            "time",
            f"about {duration(plan.forecast_seconds)}, a rough forecast from {plan.peak_flops / 1e9:,.0f} GFLOP/s peak"
            if plan.forecast_seconds and plan.peak_flops
            else "not known for this device; the progress bar will tell",
        ),
        *memory_lines(plan.memory),
        (
            "disk",
            f"{plan.checkpoint_bytes / gigabytes:,.2f} GB a checkpoint, at most {plan.disk_bytes / gigabytes:,.2f} GB "
            f"at once, {plan.disk_free / gigabytes:,.1f} GB free",
        ),
        ("output", recipe.output_dir),
    ]
    chosen = ("dtype", "max_tokens_per_device", "gradient_checkpointing", "torch_compile")
    values: dict[str, Any] = {key: getattr(plan, key) for key in chosen}
    advised = plan_advice.advice_keys(plan, recipe)
    for key, reason in plan.reasons.items():
        if key in advised:
            continue
        lines.append((key, f"{values.get(key, getattr(recipe, key))}   ({reason})"))
    return lines


def _order_lines(plan: RunPlan, recipe: Recipe) -> list[tuple[str, str]]:
    """Samples and steps; of a phased run for each phase, and how one follows another."""
    if recipe.strategy == "phased":
        return _phase_lines(plan, recipe)
    (only,) = plan.phases
    batch = only["effective_batch_size"]
    last = f", the last with {plan.last_step_samples:,}" if plan.last_step_samples != batch else ""
    return [
        ("samples seen", _epochs(only, recipe)),
        ("steps", f"{only['samples']:,} samples / {batch:,} a step = {plan.steps:,} optimizer steps{last}"),
    ]


def _phase_lines(plan: RunPlan, recipe: Recipe) -> list[tuple[str, str]]:
    asked, seen = recipe.phasing, plan.samples_seen(plan.steps)
    by = f"by {asked.by}" + (f", split at {', '.join(f'{cut:g}' for cut in asked.cuts)}" if asked.cuts else "")
    choice = "the last checkpoint" if asked.select == "last" else f"the best checkpoint by {asked.select}"
    moments = "new optimizer moments" if asked.optimizer == "fresh" else "its optimizer moments"
    lines = [("phases", f"{len(plan.phases)}, {by}; {choice} of each starts the next, with {moments}")]
    for phase in plan.phases:
        replayed = f" ({phase['replayed_samples']:,} replayed)" if phase["replayed_samples"] else ""
        warmup = f", {phase['warmup_steps']} warm-up steps" if phase["warmup_steps"] else ""
        lines.append(
            (
                f"  {phase['name']}",
                f"{_epochs(phase, recipe)}{replayed}, / {phase['effective_batch_size']:,} a step = steps "
                f"{phase['first_step']:,} to {phase['last_step']:,}, learning_rate {phase['learning_rate']:g} "
                f"{phase['lr_scheduler_type']}{warmup}",
            )
        )
    return [*lines, ("steps", f"{plan.steps:,} optimizer steps over all phases, {seen:,} samples")]


def _epochs(phase: dict[str, Any], recipe: Recipe) -> str:
    """Samples an epoch x epochs = samples, and where max_steps cuts them."""
    whole = phase["epoch_samples"] * phase["num_train_epochs"]
    cut = f", cut to {phase['samples']:,} by max_steps {recipe.max_steps}" if phase["samples"] != whole else ""
    return f"{phase['epoch_samples']:,} an epoch x {phase['num_train_epochs']} epochs = {whole:,}{cut}"


def memory_lines(memory: dict[str, Any]) -> list[tuple[str, str]]:
    """The memory of one process at its highest, a line a part, the sum and what is free."""
    free = "" if memory["available"] is None else f" of {memory['available'] / 1e9:,.2f} GB that can be had"
    text = f"about {memory['peak'] / 1e9:,.2f} GB for each process{free}, most during {memory['moment']}:"
    return [("memory", text)] + [("", f"{size / 1e9:8,.2f} GB  {part}") for part, size in memory["parts"].items()]


def _adapter_lines(plan: RunPlan, recipe: Recipe) -> list[tuple[str, str]]:
    """What is trained, where that is not the model itself."""
    if not recipe.use_peft:
        return []
    share = plan.trained_parameters / plan.parameters
    targets = recipe.lora_target_modules
    layers = targets if isinstance(targets, str) else ", ".join(targets)
    frozen = ", the model frozen in 4-bit NF4" if recipe.load_in_4bit else ", the model frozen"
    size = f"{plan.trained_parameters / 1e6:,.2f}M parameters ({share:.1%}) of rank {recipe.lora_r} on {layers}"
    return [("adapter", f"LoRA, {size}{frozen}")]


def _weighted(plan: RunPlan) -> str:
    own = plan.epoch_samples - sum(phase["replayed_samples"] for phase in plan.phases)
    return f", {own:,} an epoch by weight" if own != plan.samples else ""
