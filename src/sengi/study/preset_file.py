"""A study preset and a recipe made into a study file: the paper's question, asked on the user's data."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sengi.data.phase_split import MOST
from sengi.errors import RecipeError
from sengi.model.adapters import config_folder
from sengi.model.resolve import resolve_model
from sengi.presets.scale import SIZES, ScaledSize, scaled, scaled_apart
from sengi.recipe import Recipe
from sengi.recipe_sources import ResolvedRecipe, dump_yaml, read_preset, resolve_recipe
from sengi.study.dimensions import OWN_KEYS, Space, options
from sengi.study.study_file import study_from
from sengi.study.study_presets import EPOCHS, EPOCHS_REASON, LENGTH_PHASES, StudyPreset, check_preset, family
from sengi.train.data_size import epoch_samples, phase_names
from sengi.train.observer import Observer

SEEDS = [1, 2]  # one says nothing of chance; each more costs as much again
WIDTH = 118  # characters of a comment line
STEPS_INSTEAD = {"save_samples": "save_steps", "eval_samples": "eval_steps"}  # which leave the first without effect


@dataclass
class PresetFile:
    """A study file in the making.

    Attributes:
        text: the study file.
        samples: of an epoch of the data.
        sizes: what scaling made of the paper's sizes; empty without it.
        kept: sentences about sizes of the recipe that scaling left alone.
    """

    text: str
    samples: int
    sizes: list[ScaledSize] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def preset_file(name: str, recipe: Path, overrides: Sequence[str], scale: bool, observer: Observer) -> PresetFile:
    """Make the study file of a preset, and check it as ``sengi study`` will.

    Args:
        name: of the preset.
        recipe: recipe file that all runs have in common.
        overrides: ``key=value`` on top of it.
        scale: whether sizes that come from the paper are cut to the data; the recipe's own stay.
        observer: told of tokenizing progress.

    Raises:
        RecipeError: there is no such preset, or it does not go with the recipe or the data.
    """
    preset = check_preset(name)
    resolved = resolve_recipe(recipe, overrides)
    folder = resolve_model(resolved.recipe.model_name_or_path)
    kin = family(resolved.recipe.model_name_or_path, _model_type(folder))
    stages = preset.stages(resolved.recipe, kin)
    made = PresetFile("", epoch_samples(resolved.recipe, observer))
    base = _asked(resolved)
    if any("strategy" in space for space in stages.values()) and resolved.recipe.phases is None:
        names = phase_names(resolved.recipe, observer)
        named = 1 < len(names) <= MOST and "" not in names  # a sample without a phase ends a run by phases
        base |= {"strategy": "stacked", "phases": {"by": "phase"} if named else LENGTH_PHASES}
    if scale:
        stages = {stage: _scale_space(space, made) for stage, space in stages.items()}
        _scale_recipe(base, resolved, _varied(stages), made)
    else:
        _check_batches(name, stages, resolved.recipe, made)
    changed = bool(overrides) or base != _asked(resolved)
    values: dict[str, Any] = {
        "preset": name,
        "recipe": {key: value for key, value in base.items() if key not in OWN_KEYS} if changed else str(recipe),
        "output_dir": str(Path(resolved.recipe.output_dir).parent / name),
        **({"space": stages[name]} if len(stages) == 1 else {"stages": stages}),
        "seeds": SEEDS,
        "budget_samples": EPOCHS * made.samples,
        "objective": "heldout_loss",
        "early_termination": {"mode": "advise"},
    }
    if made.sizes:
        values["scale"] = [{"key": size.key, "paper": size.paper, "here": size.here} for size in made.sizes]
    study_from(dict(values), dict.fromkeys(values, f"study preset {name}"), Path(f"study preset {name}"))
    made.text = _comments(preset, stages, made) + dump_yaml(values, short=True)
    return made


def _asked(resolved: ResolvedRecipe) -> dict[str, Any]:
    """What the recipe file and ``--set`` say, without defaults and what a preset says below them."""
    values = resolved.recipe.model_dump(mode="json", exclude_unset=True)
    return {key: values[key] for key in values if not _of_paper(key, resolved)}


def _of_paper(key: str, resolved: ResolvedRecipe) -> bool:
    """Whether a value is a default or a recipe preset's: the paper's, and not the user's."""
    return resolved.origins.get(key, "preset ").startswith("preset ")


def _scale_space(space: Space, made: PresetFile) -> Space:
    """The space with the paper's sizes cut to the data; recipe presets in it become names of several values."""
    cut = dict(space)
    if isinstance(batches := space.get("effective_batch_size"), list):
        sizes = scaled_apart("effective_batch_size", batches, made.samples)
        made.sizes += sizes
        cut["effective_batch_size"] = [size.here for size in sizes]
    if isinstance(presets := space.get("preset"), list):
        own = {name: read_preset(name) for name in presets}
        scaled_apart("effective_batch_size", [values["effective_batch_size"] for values in own.values()], made.samples)
        cut["preset"] = {
            name: {key: _scale(key, values[key], made) for key in SIZES if key in values}
            for name, values in own.items()
        }
    return cut


def _varied(stages: dict[str, Space]) -> set[str]:
    """Recipe keys that the space decides, also inside names that stand for several."""
    spaces = list(stages.values())
    bundles = [values for space in spaces for values in space.values() if isinstance(values, dict)]
    return {key for space in spaces for key in space} | {
        key for bundle in bundles for values in bundle.values() for key in values
    }


def _scale_recipe(base: dict[str, Any], resolved: ResolvedRecipe, varied: set[str], made: PresetFile) -> None:
    """The same for what the runs have in common; ``varied`` are the keys that the space decides."""
    for key in SIZES:
        paper = getattr(resolved.recipe, key)
        instead = STEPS_INSTEAD.get(key)
        if paper is None or key in varied or (instead and getattr(resolved.recipe, instead) is not None):
            continue
        if not _of_paper(key, resolved):
            made.kept.append(f"{key} {paper:,} is the recipe's own and stays")
        else:
            base[key] = _scale(key, paper, made)


def _scale(key: str, paper: int, made: PresetFile) -> int:
    """One size, noted down once."""
    size = scaled(key, paper, made.samples)
    if size not in made.sizes:
        made.sizes.append(size)
    return size.here


def _check_batches(name: str, stages: dict[str, Space], recipe: Recipe, made: PresetFile) -> None:
    """Refuse batches above the budget with the cure that this command has.

    Raises:
        RecipeError: naming the batch and the budget.
    """
    batches = [recipe.effective_batch_size]
    for space in stages.values():
        batches += options(space.get("effective_batch_size", []))
        batches += [read_preset(preset)["effective_batch_size"] for preset in options(space.get("preset", []))]
    if max(batches) > EPOCHS * made.samples:
        raise RecipeError(
            f"study preset {name}: {max(batches):,} samples a step are more than the {EPOCHS * made.samples:,} of "
            f"{EPOCHS} epochs; cut the paper's sizes to the data by --scale, or add data"
        )


def _comments(preset: StudyPreset, stages: dict[str, Space], made: PresetFile) -> str:
    points = sum(_points(space) for space in stages.values())
    sentences = [
        preset.question,
        f"The paper (arXiv 2412.13337): {preset.answer} ({preset.source}; {preset.confidence} confidence).",
        preset.note and f"Note: {preset.note}.",
        f"Here: {points} points x {len(SEEDS)} seeds x {EPOCHS} epochs x {made.samples:,} samples = "
        f"{points * len(SEEDS) * EPOCHS * made.samples:,} samples; {EPOCHS} epochs, because {EPOCHS_REASON}.",
        *(f"{size.key} {size.here:,} = {size.arithmetic}" + (size.note and f"; {size.note}") for size in made.sizes),
        *made.kept,
    ]
    lines = [line for text in sentences if text for line in textwrap.wrap(text, WIDTH)]
    return "".join(f"# {line}\n" for line in lines)


def _points(space: Space) -> int:
    product = 1
    for values in space.values():
        product *= len(options(values))
    return product


def _model_type(folder: Path) -> str:
    config = json.loads((config_folder(folder) / "config.json").read_text(encoding="utf-8"))
    return str(config.get("model_type", ""))
