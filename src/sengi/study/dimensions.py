"""The space of a study: what a key may say, what is wrong with it, and the recipe values that a point stands for."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args

from pydantic import model_validator

from sengi.errors import RecipeError
from sengi.recipe import Recipe, Strict, field_names, field_of
from sengi.recipe_sources import nearest, preset_text, read_preset

OWN_KEYS = {  # recipe keys that the study sets itself -> the study key that decides them
    "output_dir": "output_dir of the study",
    "seed": "seeds",
    "max_steps": "budget_samples",
    "num_train_epochs": "budget_samples",
}
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Range(Strict):
    """Values between two ends, searched by Optuna."""

    low: int | float
    """Smallest value; whole numbers at both ends make the values whole, and a key that takes no others needs them."""
    high: int | float
    """Largest value."""
    log: bool = False
    """Whether to search on a logarithmic scale, as learning rates and batch sizes want."""

    @model_validator(mode="after")
    def _check_ends(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, but a logarithmic scale begins above 0; raise low")
        return self


class ScaledEntry(Strict):
    """One size of the paper on smaller data (:mod:`sengi.presets.scale`)."""

    key: str
    """Recipe key."""
    paper: int
    """Samples in the paper."""
    here: int
    """Samples here."""


Bundles: TypeAlias = dict[str, dict[str, Any]]  # name -> recipe keys and values that it stands for
Space: TypeAlias = dict[str, list[Any] | Range | Bundles]


def settle_ranges(space: Space) -> Space:
    """A space whose ranges have the numbers that their keys take: whole ones for a key that takes no others.

    Raises:
        ValueError: such a key has an end that is not whole, so that most draws would fail in the middle of the study.
    """
    return {key: _settled(key, values) if isinstance(values, Range) else values for key, values in space.items()}


def _settled(key: str, asked: Range) -> Range:
    # a warm-up below 1 is a share of the steps, above it is steps
    whole = asked.high > 1 if key == "warmup_steps" else _takes_whole_numbers(key)
    if not whole:
        return asked
    if asked.low != int(asked.low) or asked.high != int(asked.high):
        above = " above 1" if key == "warmup_steps" else ""
        raise ValueError(
            f"{key} runs from {asked.low} to {asked.high}, but{above} it takes whole numbers only; give whole numbers "
            "at both ends"
        )
    return asked.model_copy(update={"low": int(asked.low), "high": int(asked.high)})


def _takes_whole_numbers(key: str) -> bool:
    kinds = set(_kinds(field_of(key).annotation))
    return float not in kinds and bool(kinds & {int, bool})


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


def options(values: list[Any] | Range | Bundles) -> list[Any]:
    """What a key of the space may be set to: the values of a list, the names of bundles; a range has none."""
    return [] if isinstance(values, Range) else list(values)


def is_searched(space: Space) -> bool:
    """Whether Optuna chooses the points of a space, as soon as it has a range; else they are a grid."""
    return any(isinstance(values, Range) for values in space.values())


def trial_points(space: Space) -> list[dict[str, Any]]:
    """Points that have every value of every key and both ends of every range at least once, the first ones together
    first; of an empty space none."""
    choices = {key: [v.low, v.high] if isinstance(v, Range) else options(v) for key, v in space.items()}
    first = {key: values[0] for key, values in choices.items()}
    return [{**first, key: value} for key, values in choices.items() for value in values]


def grid_points(space: Space) -> list[dict[str, Any]]:
    """All points of a space of lists and names, the last key moving fastest."""
    lists = [options(values) for values in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def recipe_values(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe keys and values that a point stands for: presets below, then bundles, then single values.

    Args:
        space: of the study.
        settings: of the point, key of the space -> value or name.
    """
    preset = settings.get("preset")
    bundled = [bundle[settings[key]] for key, bundle in space.items() if isinstance(bundle, dict) and key in settings]
    single = {key: value for key, value in settings.items() if key in field_names()}
    merged = read_preset(preset) if preset is not None else {}
    for values in bundled:
        merged |= values
    return {**merged, **single}


def check_spaces(values: Mapping[str, Any], places: Mapping[str, str], path: Path) -> None:
    """What can be said of the space of a study file, or of the spaces of its stages, without its recipe.

    Args:
        values: the study file as read from YAML.
        places: file and line of each key.
        path: the study file.

    Raises:
        RecipeError: naming the place, the key and the cure.
    """
    stages = values.get("stages")
    if not stages:
        _check_space(values.get("space"), places.get("space", str(path)), "space")
        return
    place = places["stages"]
    if values.get("space"):
        raise RecipeError(f"{place}: stages: a study has a space or stages, not both; remove one")
    if not isinstance(stages, dict):
        raise RecipeError(
            f"{place}: stages: give each a name and a space, as in 'rate: {{learning_rate: [1e-5, 2e-5]}}'"
        )
    for name, space in stages.items():
        if not _FOLDER.fullmatch(str(name)):
            raise RecipeError(f"{place}: stages: '{name}' is to name a folder; use letters, digits, '-' and '_'")
        _check_space(space, place, f"stages.{name}")


def _check_space(space: Any, place: str, name: str) -> None:
    if not isinstance(space, dict) or not space:
        raise RecipeError(
            f"{place}: {name}: name at least one recipe key and its values, as in 'learning_rate: [1e-5, 2e-5]'"
        )
    for key, values in space.items():
        if _are_bundles(values):
            _check_bundles(key, values, space, f"{place}: {name}.{key}")
        else:
            _check_key(key, f"{place}: {name}", f"{place}: {name}.{key}")
            _check_values(values, f"{place}: {name}.{key}")
        if key == "preset":
            for preset in values if isinstance(values, list | dict) else ():
                if preset is not None:
                    preset_text(str(preset))  # an unknown one is an error that names the nearest


def _are_bundles(values: Any) -> bool:
    return isinstance(values, dict) and bool(values) and all(isinstance(one, dict) for one in values.values())


def _check_key(key: str, inside: str, itself: str) -> None:
    if key in OWN_KEYS:
        raise RecipeError(f"{itself}: the study decides it by {OWN_KEYS[key]}; remove it from the space")
    if key not in field_names():
        raise RecipeError(
            f"{inside}: a recipe has no key '{key}'{nearest(key, field_names())}; 'sengi recipe schema' lists all"
        )


def _check_values(values: Any, place: str) -> None:
    if isinstance(values, list):
        if not values:
            raise RecipeError(f"{place}: the list is empty, so the grid is; give it values or remove it")
        if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
            raise RecipeError(f"{place}: a value is listed twice; repeat runs by seeds instead")
    elif not isinstance(values, dict) or not values:
        raise RecipeError(f"{place}: is {values!r}; give a list, or a range as {{low: 1e-6, high: 1e-4}}")


def _check_bundles(key: str, bundles: Bundles, space: Mapping[str, Any], place: str) -> None:
    """A name that stands for several keys must say something of its own, of keys that are a recipe's."""
    if key in OWN_KEYS:
        _check_key(key, place, place)
    for name, values in bundles.items():
        for inner in values:
            _check_key(inner, f"{place}.{name}", f"{place}.{name}.{inner}")
            if inner in space:
                raise RecipeError(f"{place}.{name}: sets {inner}, which the space varies, too; keep one of them")
    if key in field_names():  # then the name is its value, and says enough
        return
    for one, other in itertools.combinations(bundles, 2):
        if bundles[one] == bundles[other]:
            raise RecipeError(f"{place}: {one} and {other} set the same; repeat runs by seeds instead")


def check_phases(recipe: Recipe) -> None:
    """Refuse phases that a budget of samples cannot be shared out over: ``max_steps`` shortens all of them alike.

    Raises:
        RecipeError: a phase has a batch size or epochs of its own.
    """
    for name, own in recipe.phasing.settings.items():
        for key in ("effective_batch_size", "num_train_epochs"):
            if getattr(own, key) is not None:
                raise RecipeError(
                    f"phases.settings.{name}.{key}: budget_samples is shared out over the phases in proportion to "
                    "their samples, which needs equal batches and epochs; remove it"
                )
