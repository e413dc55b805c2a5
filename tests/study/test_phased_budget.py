"""A study over the strategy: stacked and phased runs see the same number of samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.train.memory_run import random_samples, write_store

from sengi.data.phases import run_order
from sengi.errors import RecipeError
from sengi.recipe_sources import resolve_recipe
from sengi.study.study_file import StudyRequest, read_study


def study(folder: Path, **phases: Any) -> StudyRequest:
    recipe = {"model_name_or_path": "m", "data": ["data.jsonl"], "eval_data": ["h.jsonl"], "effective_batch_size": 4}
    values = {
        "recipe": recipe | {"strategy": "phased", "phases": {"by": "response_length", "at": 0.25} | phases},
        "output_dir": str(folder / "study"),
        "space": {"strategy": ["stacked", "phased"]},
        "budget_samples": 203,
    }
    (folder / "study.yaml").write_text(json.dumps(values))
    return read_study(folder / "study.yaml")


def test_a_budget_is_shared_out_over_the_phases(tmp_path: Path) -> None:
    store, request = write_store(tmp_path / "store", random_samples(40, 50)), study(tmp_path)
    orders = {}
    for strategy in ("stacked", "phased"):
        values = request.run_values({"strategy": strategy}, 1, tmp_path / strategy)
        orders[strategy] = run_order(resolve_recipe(values=values).recipe, store)
    assert orders["stacked"].total_samples == orders["phased"].total_samples == 200
    assert [phase.name for phase in orders["stacked"].phases] == ["stacked"]
    # 10 and 30 samples: a quarter of the steps and three quarters, rounded to the nearest
    assert [phase.plan.num_steps for phase in orders["phased"].phases] == [13, 37]


@pytest.mark.parametrize("key", ["effective_batch_size", "num_train_epochs"])
def test_a_phase_of_another_size_has_no_fair_share(tmp_path: Path, key: str) -> None:
    with pytest.raises(RecipeError, match=rf"phases.settings.part-2.{key}: budget_samples is shared out"):
        study(tmp_path, settings={"part-2": {key: 8}})
