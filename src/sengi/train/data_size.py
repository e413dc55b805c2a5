"""How many samples an epoch has: counted from the token store, as the plan of a run counts them."""

from __future__ import annotations

from sengi.recipe import Recipe
from sengi.recipe_sources import resolve_recipe
from sengi.train.distributed import start_world
from sengi.train.observer import Observer
from sengi.train.setup import open_data

DECIDE = {"model_name_or_path", "data", "output_dir", "max_length", "overlong"}  # recipe keys that decide the samples


def epoch_samples(recipe: Recipe, observer: Observer) -> int:
    """Samples of one epoch over all data, weights counted in; builds the token store that the runs will use.

    Args:
        recipe: whose data are counted.
        observer: told of tokenizing progress.

    Raises:
        InputError: the model or the data cannot be used.
    """
    stacked = resolve_recipe(values=recipe.model_dump(mode="json", include=DECIDE))
    return open_data(stacked, start_world(), observer, None)[2].epoch_size
