"""What a run and its plan have in common: the model folder, the token store, the order, the device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from sengi.data.columns import read_column
from sengi.data.overlap import OverlapReport
from sengi.data.phases import RunOrder, run_order
from sengi.data.store import StoreOptions, TokenStore
from sengi.data.store_build import open_store
from sengi.errors import InputError, RecipeError
from sengi.evaluate.contamination import contamination_note, find_contamination
from sengi.evaluate.suite import Suite, check, fingerprint
from sengi.model.compiled import can_compile
from sengi.model.cost import ModelCost, best_dtype, model_cost, peak_flops
from sengi.model.load import load_tokenizer
from sengi.model.lora import add_adapter, check_method, skeleton
from sengi.model.resolve import resolve_model
from sengi.recipe import DataEntry, Recipe
from sengi.recipe_parts import BY_LENGTH, BY_PHASE
from sengi.recipe_sources import ResolvedRecipe
from sengi.train.distributed import World
from sengi.train.memory_fit import fit
from sengi.train.observer import Observer
from sengi.train.optimizer_states import check_optimizer
from sengi.train.patience import on_first_patiently
from sengi.train.run_plan import RunPlan, make_plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# How a recipe calls what messages about evaluations name as options of the command line
OPTION_KEYS = {
    "--tasks": "eval_tasks",
    "--limit": "eval_limit",
    "--num-fewshot": "eval_num_fewshot",
    "--data-root": "eval_data_root",
}


@dataclass(frozen=True)
class Setup:
    """Everything that is known before weights are read."""

    resolved: ResolvedRecipe
    model_folder: Path
    store: TokenStore
    heldout: TokenStore | None
    steps: RunOrder
    cost: ModelCost
    plan: RunPlan
    suite: Suite | None
    suite_data: str  # its fingerprint; empty without one
    contamination: list[OverlapReport]


def set_up(resolved: ResolvedRecipe, world: World, observer: Observer, earlier: dict[str, Any] | None) -> Setup:
    """Resolve the model, build or open the stores and make the plan; all ranks call this together.

    Args:
        resolved: the recipe.
        world: processes of the run.
        observer: told of tokenizing progress.
        earlier: plan.json of the run that is continued: what was chosen automatically then stays.

    Raises:
        InputError: model, data or recipe cannot be used.
    """
    recipe = resolved.recipe
    check_optimizer(recipe, world.size)
    suite = evaluation_suite(recipe)
    if suite is not None:  # before tokenizing: a typing error must not cost minutes
        world.on_first(lambda: _check_suite(suite))
    folder, store, steps = open_data(resolved, world, observer, earlier)
    today = _template_date(earlier)
    heldout = _open(recipe.eval_data, folder, resolved, world, observer, today) if recipe.eval_data else None
    suite_data = str(world.on_first(lambda: fingerprint(suite))) if suite is not None else ""

    def compare() -> list[dict[str, Any]]:
        found = find_contamination(recipe, suite, suite_data, own=True, progress=observer.comparing)
        return [asdict(report) for report in found]

    contamination = [OverlapReport(**entry) for entry in on_first_patiently(world, compare)]
    cost = cost_without_weights(folder, recipe)
    dtype, reason = best_dtype(world.device)
    if recipe.dtype != "auto":
        dtype = DTYPES[recipe.dtype]
    elif earlier:
        dtype = DTYPES[earlier["dtype"]]
    fitted = fit(recipe, folder, store, steps, cost, dtype, world, earlier)
    plan = make_plan(
        resolved,
        store,
        steps,
        cost,
        fitted=fitted,
        dtype=dtype,
        dtype_reason=reason,
        world_size=world.size,
        device=world.device,
        peak=world.on_first(lambda: peak_flops(world.device, dtype)),
        earlier=earlier,
    )
    if plan.torch_compile and (cause := next(filter(None, world.gather(can_compile(world.device))), "")):
        plan = replace(plan, torch_compile=False, memory=fitted.memory.to_dict())
        plan.warnings.append(f"torch_compile is not used: it does not work here ({cause})")
    if note := contamination_note(contamination):
        plan.warnings.append(note)
    return Setup(resolved, folder, store, heldout, steps, cost, plan, suite, suite_data, contamination)


def evaluation_suite(recipe: Recipe) -> Suite | None:
    """What the recipe's eval_* keys ask of checkpoints, or None where eval_tasks is empty.

    Raises:
        RecipeError: a task that a recipe cannot describe.
    """
    if not recipe.eval_tasks:
        return None
    if "mt_bench" in recipe.eval_tasks:
        raise RecipeError(
            f"eval_tasks: mt_bench needs a judge, which a recipe does not name; leave it out and run 'sengi eval "
            f"{recipe.output_dir} --tasks mt_bench ...' on the checkpoints"
        )
    return Suite(
        tasks=tuple(dict.fromkeys(recipe.eval_tasks)),
        num_fewshot=recipe.eval_num_fewshot,
        limit=recipe.eval_limit,
        data_root=Path(recipe.eval_data_root).expanduser() if recipe.eval_data_root is not None else None,
        apply_chat_template=recipe.eval_apply_chat_template,
        max_length=recipe.max_length,
    )


def _check_suite(suite: Suite) -> None:
    """:func:`sengi.evaluate.suite.check`, in the words of a recipe."""
    try:
        check(suite)
    except InputError as error:
        text = str(error)
        for option, key in OPTION_KEYS.items():
            text = text.replace(option, key)
        raise RecipeError(text if text.startswith("eval_") else f"eval_tasks: {text}") from None


def open_data(
    resolved: ResolvedRecipe, world: World, observer: Observer, earlier: dict[str, Any] | None
) -> tuple[Path, TokenStore, RunOrder]:
    """The model folder, the training store (built if it is not there) and the order of its samples.

    Args:
        resolved: the recipe.
        world: processes of the run.
        observer: told of tokenizing progress.
        earlier: plan.json of the run that is continued or looked at.

    Raises:
        InputError: the model or the data cannot be used.
    """
    recipe = resolved.recipe
    folder = Path(on_first_patiently(world, lambda: str(resolve_model(recipe.model_name_or_path))))
    world.on_first(lambda: check_method(folder, recipe))
    store = _open(recipe.data, folder, resolved, world, observer, _template_date(earlier))
    by = recipe.phasing.by
    if by not in (BY_PHASE, BY_LENGTH):  # a column of the rows: read by rank 0 and kept beside the store
        world.on_first(lambda: read_column(store, by) and None)
    steps = run_order(recipe, store)
    return folder, store, steps


def _open(
    entries: list[DataEntry],
    folder: Path,
    resolved: ResolvedRecipe,
    world: World,
    observer: Observer,
    today: date | None,
) -> TokenStore:
    """A store, built by rank 0 if it is not there, which may take hours; the other ranks wait and open it."""
    options = StoreOptions(resolved.recipe.max_length, resolved.recipe.overlong)

    def build() -> str:
        tokenizer = load_tokenizer(folder)
        return str(open_store(entries, tokenizer, options, today=today, progress=observer.tokenizing).path)

    return TokenStore(Path(on_first_patiently(world, build)))


def _template_date(earlier: dict[str, Any] | None) -> date | None:
    """A template that prints the date prints that of the run's first day for as long as the run lasts."""
    text = earlier["data"]["template_date"] if earlier else ""
    return date.fromisoformat(text) if text else None


def cost_without_weights(folder: Path, recipe: Recipe) -> ModelCost:
    """The sizes of the model and its adapter, if the recipe asks for one, from the config alone."""
    lm = skeleton(folder)
    if recipe.use_peft:
        add_adapter(lm, recipe)
    return model_cost(lm)
