"""At which steps a run saves and evaluates: every so many steps, or every so many samples."""

from __future__ import annotations

from sengi.data.plan import StepPlan
from sengi.recipe import Recipe


def samples_seen(plan: StepPlan, step: int) -> int:
    """Samples seen after ``step`` steps."""
    return min(step * plan.batch_size, plan.total_samples)


def save_is_due(recipe: Recipe, plan: StepPlan, step: int) -> bool:
    """Whether a checkpoint is saved after ``step``; after the last one always."""
    return step == plan.num_steps or _crosses(recipe.save_steps, recipe.save_samples, plan, step)


def evaluation_is_due(recipe: Recipe, plan: StepPlan, step: int) -> bool:
    """Whether ``step`` is an evaluation point: before the first step and after the last one always."""
    return step in (0, plan.num_steps) or _crosses(recipe.eval_steps, recipe.eval_samples, plan, step)


def _crosses(steps: int | None, samples: int | None, plan: StepPlan, step: int) -> bool:
    """Whether a multiple of ``steps``, or where it is None of ``samples``, was reached by this step."""
    if steps is not None:
        return step % steps == 0
    if samples is None:
        return False
    return samples_seen(plan, step) // samples > samples_seen(plan, step - 1) // samples
