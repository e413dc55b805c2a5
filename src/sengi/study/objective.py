"""What a study is decided by: the held-out loss, or one metric of one task, which says which way is better."""

from __future__ import annotations

from sengi.data.files import split_suffix
from sengi.errors import RecipeError
from sengi.recipe import Recipe
from sengi.statistics.metrics import is_higher_better

HELDOUT = "heldout_loss"


def parts(objective: str) -> tuple[str, str]:
    """Task and metric of an objective; either is empty where it is not named."""
    if objective == HELDOUT:
        return "heldout", "loss"
    task, _, metric = objective.rpartition("/")
    return task, metric


def is_minimized(objective: str) -> bool:
    """Whether a lower score is better."""
    return not is_higher_better(parts(objective)[1])


def check_objective(objective: str, recipe: Recipe) -> None:
    """Refuse an objective that the recipe cannot have, or that does not say which metric.

    Raises:
        RecipeError: naming what can be asked.
    """
    if not all(parts(objective)):
        raise RecipeError(
            f"objective is '{objective}', which names no metric of a task, so that nothing says which way is better; "
            f"this recipe has {', '.join(_offers(recipe)) or 'nothing to score: add eval_data'}"
        )
    if objective == HELDOUT and not recipe.eval_data:
        raise RecipeError("objective is heldout_loss, but the recipe has no eval_data; add held-out conversations")
    if objective != HELDOUT and not (recipe.eval_questions or recipe.eval_tasks):
        raise RecipeError(
            f"objective is '{objective}', but the recipe has neither eval_questions nor eval_tasks; add what is to be "
            "scored"
        )


def _offers(recipe: Recipe) -> list[str]:
    """What can be asked of the scores that a recipe makes; METRIC stands where only the benchmark knows."""
    offers = [HELDOUT] if recipe.eval_data else []
    for task in (*(f"questions:{file}" for file in recipe.eval_questions), *recipe.eval_tasks):
        kind, colon, file = task.partition(":")
        stem = split_suffix(file)[0]
        if colon and kind == "questions":
            offers += [f"{stem}/accuracy", f"{stem}/exact_match"]
        elif colon and kind == "heldout":
            offers.append(f"heldout_{stem}/loss")
        else:
            offers.append(f"{task}/METRIC")
    return list(dict.fromkeys(offers))
