"""What a recipe's data hold, read from the token store: samples of an epoch, as a plan counts them, and phases."""

from __future__ import annotations

from sengi.data.phases import RunOrder
from sengi.data.store import TokenStore
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
    return _open(recipe, observer)[1].epoch_size


def phase_names(recipe: Recipe, observer: Observer) -> list[str]:
    """Phases that the data entries or the rows name, empty for samples without one; arguments and errors as above."""
    return _open(recipe, observer)[0].phase_names


def _open(recipe: Recipe, observer: Observer) -> tuple[TokenStore, RunOrder]:
    stacked = resolve_recipe(values=recipe.model_dump(mode="json", include=DECIDE))
    _, store, steps = open_data(stacked, start_world(), observer, None)
    return store, steps
