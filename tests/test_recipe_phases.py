"""The keys of phases in a recipe: what they mean together, and what is said of what they cannot mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sengi.errors import RecipeError
from sengi.recipe_sources import resolve_recipe

BASE = {"model_name_or_path": "m", "data": "train.jsonl", "output_dir": "run"}


def resolved(**values: Any) -> Any:
    return resolve_recipe(values={**BASE, **values}).recipe


def test_cuts_are_those_of_the_paper_where_length_decides() -> None:
    assert resolved(strategy="phased").phasing.cuts == ()
    assert resolved(strategy="phased", phases={"by": "response_length"}).phasing.cuts == (0.5,)
    assert resolved(strategy="phased", phases={"by": "level", "at": [0.2, 0.9]}).phasing.cuts == (0.2, 0.9)


# One switch: a study over the strategy keeps one `phases`, which its stacked runs do not use.
def test_stacked_said_aloud_does_not_use_phases() -> None:
    recipe = resolved(strategy="stacked", phases={"by": "response_length", "select": "heldout_loss"})
    assert recipe.phasing == resolved().phasing


def test_numbers_from_yaml_overrides_and_back(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model_name_or_path: m\ndata: train.jsonl\noutput_dir: run\nstrategy: phased\n"
        "phases:\n  by: response_length\n  settings:\n    part-2: {learning_rate: 2e-6}\n"
    )
    first = resolve_recipe(file, ["phases.replay=1e-2"])
    assert first.recipe.phases is not None
    assert first.recipe.phases.settings["part-2"].learning_rate == 2e-6
    assert first.recipe.phases.replay == 0.01
    file.write_text(first.to_yaml())
    assert resolve_recipe(file).recipe == first.recipe
    assert resolve_recipe(values=BASE, overrides=["strategy=phased", "phases.by=level"]).recipe.phasing.by == "level"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"phases": {}}, "phases is given, but strategy is stacked, its default; set strategy: phased"),
        ({"strategy": "phase"}, "strategy: must be 'stacked' or 'phased'"),
        ({"phases": {"at": 0.5}}, "at splits numbers, but by is phase"),
        ({"phases": {"by": "level", "at": 1.0}}, "at is 1.0: give a share above 0 and below 1"),
        ({"phases": {"by": "level", "at": 0}}, "at is 0.0: give a share above 0 and below 1"),
        ({"phases": {"by": "level", "at": [0.5, 0.2]}}, r"at is \[0.5, 0.2\]: give a share .* or a rising list"),
        ({"phases": {"by": "level", "at": []}}, "at is an empty list"),
        ({"phases": {"order": ["a", "a"]}}, "order names a phase twice"),
        ({"phases": {"replay": 1.5}}, "phases.replay: must be less than or equal to 1, got 1.5.*docs/phases.md"),
        ({"phases": {"repaly": 0.1}}, "phases: there is no key 'repaly'; did you mean 'replay'"),
        (
            {"phases": {"settings": {"a": {"learning_rat": 1}}}},
            "phases.settings.a: there is no key 'learning_rat'; did",
        ),
        ({"phases": {"settings": {"a": {"warmup_steps": 2.5}}}}, "give whole steps, or a share below 1"),
        ({"phases": {"select": "heldout_loss"}}, "select is heldout_loss, but there is no eval_data"),
        ({"phases": {"select": "mmlu/acc"}}, "select is 'mmlu/acc', but there are no eval_tasks"),
    ],
)
def test_what_phases_cannot_mean(values: dict[str, Any], message: str) -> None:
    strategy = {} if "strategy" in values or values == {"phases": {}} else {"strategy": "phased"}
    with pytest.raises(RecipeError, match=message):
        resolved(**strategy, **values)
