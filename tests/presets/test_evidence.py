"""Recipe presets: every value has a source and a confidence, in its file, in the table and on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sengi.presets import evidence
from sengi.presets.evidence import CONFIDENCES, preset_title, preset_values
from sengi.recipe import Recipe
from sengi.recipe_sources import preset_names, read_preset, resolve_recipe

PAGE = Path(__file__).parents[2] / "docs" / "presets.md"
LAB = {"effective_batch_size": 3840, "learning_rate": 2e-5, "lr_scheduler_type": "constant", "warmup_steps": 0}
# What the paper's configurations are, as far as issue and paper name them
KNOWN: dict[str, dict[str, Any]] = {
    "lab": LAB,
    "lab-8k": {**LAB, "effective_batch_size": 7680},
    "lab-granite": LAB,
    "lab-llama": LAB,
    "lab-mistral": {**LAB, "learning_rate": 1e-6},
    "tulu": {
        "effective_batch_size": 128,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.03,
    },
    "tulu-plus": {
        "effective_batch_size": 128,
        "learning_rate": 3e-5,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 4,
    },
    "orca-phased": {**LAB, "strategy": "phased"},
    "length-phased": {**LAB, "strategy": "phased"},
}


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """``{"phases": {"by": "phase"}}`` as ``{"phases.by": "phase"}``."""
    found = {}
    for key, value in values.items():
        found |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return found


def test_the_presets_are_the_paper_s_configurations() -> None:
    assert set(preset_names()) == set(KNOWN)
    for name, known in KNOWN.items():
        assert known.items() <= read_preset(name).items()
    phases = {name: read_preset(name)["phases"] for name in ("orca-phased", "length-phased")}
    assert phases["orca-phased"]["by"] == "phase"
    assert {"by": "response_length", "at": 0.5, "replay": 0.01}.items() <= phases["length-phased"].items()


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_value_of_a_preset_is_a_recipe_s_and_has_its_evidence(name: str) -> None:
    found = preset_values(name)
    assert {one.key: one.value for one in found} == flat(read_preset(name))
    for one in found:
        assert one.confidence in CONFIDENCES
        assert len(one.source.split()) >= 3, f"{name}: {one.key} says too little of its source"
    recipe = resolve_recipe(values={"model_name_or_path": "m", "data": ["d"], "output_dir": "o", "preset": name}).recipe
    resolved = flat(recipe.model_dump())
    assert {one.key: resolved[one.key] for one in found} == flat(read_preset(name))
    assert "2412.13337" in preset_title(name)


def test_a_preset_sets_what_another_one_of_the_same_strategy_sets() -> None:
    # else the values of one would shine through in a study that compares them
    keys = {name: set(read_preset(name)) - {"strategy", "phases"} for name in preset_names()}
    assert len({frozenset(one) for one in keys.values()}) == 1
    assert set.union(*keys.values()) <= set(Recipe.model_fields)


@pytest.mark.parametrize(
    "line",
    [
        "seed: 1",
        "seed: 1  # the authors' code",
        "seed: 1  # certain: the authors' code",
        "seed: 1  # high:",
        "   seed: 1",
    ],
)
def test_a_line_without_evidence_is_no_preset(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "preset_text", lambda name: f"# title\n{line}\n")
    monkeypatch.setattr(evidence, "read_preset", lambda name: {"seed": 1})
    with pytest.raises(ValueError, match=r"is not 'key: value  # high\|medium\|low: source'"):
        preset_values("x")


def test_the_page_shows_every_value_with_its_evidence() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in preset_names():
        assert f"### `{name}`" in text
        part = text.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
        assert preset_title(name) in part
        for one in preset_values(name):
            assert f"| `{one.key}` | {one.text} | {one.confidence} | {one.source} |" in part, f"{name}: {one.key}"
