"""Runs in phases that are broken off, or lose a checkpoint, end as those that did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.train.crash_harness import dynamics
from tests.train.phases.phased_run import (
    BORDER,
    LAST,
    MOMENTS,
    Broken,
    Recipe,
    break_at,
    break_at_step,
    records,
    result,
)
from tests.train.told import start

from sengi import storage


@pytest.fixture(scope="module")
def unbroken() -> dict[str, tuple[Any, ...]]:
    """Results of unbroken runs, by the settings that differ."""
    return {}


# Interrupted anywhere around a border, a run continues to the same bits.
@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    ("optimizer", "moment"),
    [
        ("fresh", "before the choice is written"),
        ("fresh", "after the choice is written"),
        ("fresh", "before the first checkpoint"),
        ("keep", "before the first checkpoint"),
        *(pytest.param("fresh", moment, marks=pytest.mark.slow) for moment in (*MOMENTS[:2], MOMENTS[4])),
        *(pytest.param("keep", moment, marks=pytest.mark.slow) for moment in MOMENTS[:5]),
    ],
)
def test_interrupted_between_phases_it_continues_exactly(
    recipe: Recipe, tmp_path: Path, unbroken: dict[str, Any], optimizer: str, moment: str
) -> None:
    phases = {"select": "heldout_loss", "optimizer": optimizer, "replay": 0.2}
    last = 11  # with replay the second phase has five steps
    if optimizer not in unbroken:
        start(recipe(phases=phases, output_dir=str(tmp_path / "unbroken")))
        unbroken[optimizer] = result(tmp_path / "unbroken", last)
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, moment)
        with pytest.raises(Broken):
            start(recipe(phases=phases))
    told = start(recipe(phases=phases))
    assert result(tmp_path / "run", last) == unbroken[optimizer]
    later = moment in MOMENTS[3:]
    assert any("from checkpoint-4, which begins phase skills" in line for line in told.messages) == later


# The newest checkpoint rots right after the hand-over: the run goes back to the chosen one, not the last of the phase.
@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("how", ["corrupt", pytest.param("gone", marks=pytest.mark.slow)])
def test_a_bad_newest_checkpoint_after_the_border(recipe: Recipe, tmp_path: Path, how: str) -> None:
    start(recipe(output_dir=str(tmp_path / "unbroken")))
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        break_at_step(patch, 9)
        with pytest.raises(Broken):
            start(recipe())
    # of the two that are kept, the older is the chosen one: it stands behind checkpoint-6
    assert [path.name for path in storage.published(run, "checkpoint-")] == ["checkpoint-4", "checkpoint-8"]
    if how == "gone":
        storage.remove(run / "checkpoint-8")
    else:
        weights = run / "checkpoint-8" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    told = start(recipe())
    assert any("continuing after step 6 from checkpoint-4, which begins phase skills" in line for line in told.messages)
    assert result(run) == result(tmp_path / "unbroken")


# The chosen checkpoint itself rots before the next phase has one: chosen again among the others, aloud.
@pytest.mark.usefixtures("pretended")
def test_a_chosen_checkpoint_that_rots_is_replaced_aloud(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    values = recipe(save_total_limit=20)
    with pytest.MonkeyPatch.context() as patch:
        break_at_step(patch, BORDER + 1)
        with pytest.raises(Broken):
            start(values)
    (run / "checkpoint-4" / "config.json").write_text("{}")
    told = start(values)
    assert any("checkpoint-4 was chosen to start a phase and cannot be used" in line for line in told.messages)
    assert records(run)[0]["chosen_step"] == BORDER
    assert len(dynamics(run)) == LAST


# Without anything left of the phase, it is trained again, and ends as it did.
@pytest.mark.usefixtures("pretended")
def test_a_run_that_lost_all_of_a_phase_trains_it_again(recipe: Recipe, tmp_path: Path) -> None:
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    values = recipe(save_total_limit=20)
    start(values | {"output_dir": str(unbroken)})
    with pytest.MonkeyPatch.context() as patch:
        break_at_step(patch, BORDER + 2)
        with pytest.raises(Broken):
            start(values)
    for step in (4, 6):
        storage.remove(run / f"checkpoint-{step}")
    with pytest.MonkeyPatch.context() as patch:
        break_at_step(patch, 3)
        with pytest.raises(Broken):
            start(values)
    assert records(run) == []  # the choice went with its checkpoint, before anything was trained
    told = start(values)
    assert any("continuing after step 2 from checkpoint-2" in line for line in told.messages)
    assert result(run) == result(unbroken)
