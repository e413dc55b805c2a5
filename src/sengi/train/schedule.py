"""At which steps a run saves and evaluates: every so many steps, or every so many samples."""

from __future__ import annotations

from sengi.data.phases import RunOrder
from sengi.recipe import Recipe


def save_is_due(recipe: Recipe, order: RunOrder, step: int) -> bool:
    """Whether a checkpoint is saved after ``step``; after the last one of each phase always."""
    return order.ends_phase(step) or _crosses(recipe.save_steps, recipe.save_samples, order, step)


def evaluation_is_due(recipe: Recipe, order: RunOrder, step: int) -> bool:
    """Whether ``step`` is an evaluation point: before the first step and after the last one of each phase always."""
    return step == 0 or order.ends_phase(step) or _crosses(recipe.eval_steps, recipe.eval_samples, order, step)


def _crosses(steps: int | None, samples: int | None, order: RunOrder, step: int) -> bool:
    """Whether a multiple of ``steps``, or where it is None of ``samples``, was reached by this step."""
    if steps is not None:
        return step % steps == 0
    if samples is None:
        return False
    return order.samples_seen(step) // samples > order.samples_seen(step - 1) // samples
