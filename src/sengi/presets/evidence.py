"""What a recipe preset's values rest on: each line of its YAML carries its source and how sure that is.

    key: value   # CONFIDENCE: SOURCE

and so does each line inside a key of several values (``phases``). ``high`` is the paper's own text or appendix for
this case; ``medium`` a summary of the paper, the authors' code, or a finding on another model; ``low`` a deduction or
a gap that had to be filled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sengi.recipe_sources import preset_text, read_preset

Confidence = Literal["high", "medium", "low"]
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)
_LINE = re.compile(r"( {2})?(\w+): (\S.*?) +# (high|medium|low): (\S.*)")
_OPENING = re.compile(r"(\w+):")


@dataclass(frozen=True)
class PresetValue:
    """One value of a preset.

    Attributes:
        key: of the recipe, or ``phases.by`` and the like.
        value: as a recipe reads it; ``text`` as the preset writes it.
        confidence: how sure it is that this is what the evidence says.
        source: where it is said, with the numbers behind it.
    """

    key: str
    value: Any
    text: str
    confidence: Confidence
    source: str


def preset_title(name: str) -> str:
    """The sentence that says what a preset is: the comment at its head.

    Raises:
        RecipeError: no such preset; names the nearest.
    """
    lines = preset_text(name).splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def preset_values(name: str) -> list[PresetValue]:
    """The values of a preset in its order, each with its evidence.

    Raises:
        RecipeError: no such preset; names the nearest.
        ValueError: a line of a preset is not as the module says; one of ours, a test reads them all.
    """
    values, found, above = read_preset(name), [], ""
    for line in preset_text(name).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if opening := _OPENING.fullmatch(line):
            above = opening[1]
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"preset {name}: '{line}' is not 'key: value  # high|medium|low: source'")
        inside, key, text, confidence, source = match.groups()
        value = values[above][key] if inside else values[key]
        place = f"{above}.{key}" if inside else key
        found.append(PresetValue(place, value, text, confidence, source))  # type: ignore[arg-type]
    return found
