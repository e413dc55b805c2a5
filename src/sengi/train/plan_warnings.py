"""What the user should know of a plan before the run, in words."""

from __future__ import annotations

import torch

from sengi.data.phases import STACKED, RunOrder
from sengi.data.store import TokenStore
from sengi.model.cost import ModelCost, best_dtype
from sengi.recipe import Recipe
from sengi.recipe_sources import ResolvedRecipe
from sengi.train.advice import FEWEST_STEPS_OF_A_PHASE

REACHED = 0.9  # share of the weights of layers that an adapter on all of them stands beside in a dense model


def of_data(recipe: Recipe, steps: RunOrder, store: TokenStore) -> list[str]:
    """Short steps, phases without effect, and rows that were dropped, cut or mended."""
    warnings = []
    for phase in steps.phases:
        plan, where = phase.plan, "" if phase.name == STACKED else f"phase {phase.name}: "
        if plan.num_steps < FEWEST_STEPS_OF_A_PHASE and where:  # of a whole run, train/advice.py says it
            warnings.append(
                f"{where}only {plan.num_steps} optimizer steps: {plan.total_samples:,} samples at effective_batch_size "
                f"{plan.batch_size:,}; a smaller batch gives the model more steps to learn in"
            )
        if plan.last_step_size < plan.batch_size and plan.num_steps > 1:
            warnings.append(f"{where}the last step is short: {plan.last_step_size:,} of {plan.batch_size:,} samples")
    if recipe.phases is not None and recipe.strategy == "stacked":
        warnings.append("phases is not used: strategy is stacked")
    dropped = store.meta["dropped"]
    if dropped:
        parts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        warnings.append(f"dropped {sum(dropped.values()):,} rows ({parts}); listed in dropped.jsonl of the run folder")
    if store.meta["truncated"]:
        warnings.append(f"truncated {store.meta['truncated']:,} samples to {recipe.max_length:,} tokens")
    for reason, count in store.meta["repairs"].items():
        warnings.append(f"{count:,} x {reason.replace('_', ' ')} (docs/masks.md)")
    return warnings


def of_dtype(recipe: Recipe, device: torch.device) -> list[str]:
    """bfloat16 where it is slow."""
    best, reason = best_dtype(device)
    if recipe.dtype == "bfloat16" and best != torch.bfloat16:
        return [f"dtype is bfloat16, but {reason}; set dtype: float32"]
    return []


def of_compiling(recipe: Recipe, compiled: bool, reason: str) -> list[str]:
    """Compiling that was asked for and does not happen."""
    asked = recipe.torch_compile is True
    return [f"torch_compile is not used: {reason}"] if asked and not compiled else []


def of_lora(resolved: ResolvedRecipe, cost: ModelCost) -> list[str]:
    """What an adapter does not reach, and what evidence for full fine-tuning, in presets, does not say about LoRA."""
    recipe, warnings = resolved.recipe, []
    if not recipe.use_peft:
        return []
    if recipe.lora_target_modules == "all-linear" and cost.adapted < REACHED * cost.linear:
        warnings.append(
            f"the adapter stands beside {cost.adapted / cost.linear:.0%} of the weights in this model's layers: "
            "experts that lie in one tensor, and state-space projections, get none and stay as they are (docs/lora.md)"
        )
    if resolved.origins.get("use_peft", "").startswith("preset"):
        return warnings
    if resolved.origins.get("learning_rate", "").startswith("preset"):
        warnings.append(
            f"learning_rate {recipe.learning_rate:g} is of {resolved.origins['learning_rate']}, for full fine-tuning; "
            f"LoRA learns best at about ten times that: set learning_rate: {10 * recipe.learning_rate:g}"
        )
    if resolved.origins.get("effective_batch_size", "preset").startswith("preset"):
        warnings.append(
            f"effective_batch_size {recipe.effective_batch_size:,} is for full fine-tuning; LoRA loses more by large "
            "batches, at any rank: compare with a smaller one (docs/lora.md)"
        )
    return warnings
