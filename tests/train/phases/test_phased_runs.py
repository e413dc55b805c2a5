"""Runs in phases: what is handed on, how phases differ, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import warm
from tests.train.crash_harness import dynamics
from tests.train.phases.phased_run import (
    BORDER,
    LAST,
    Broken,
    Recipe,
    break_at_step,
    records,
)
from tests.train.told import start, state

from sengi import storage
from sengi.errors import InputError, RecipeError, SengiError
from sengi.recipe_sources import resolve_recipe
from sengi.train import handover
from sengi.train.ledger import step_ledger
from sengi.train.observer import Observer


# One phase is stacked training under another name: bit for bit, in weights, moments and dynamics.
def test_one_phase_is_stacked_training(recipe: Recipe, parts: Path, tmp_path: Path) -> None:
    one, stacked = tmp_path / "one", tmp_path / "stacked"
    data = [{"path": str(parts / "facts.jsonl"), "phase": "all"}, {"path": str(parts / "skills.jsonl"), "phase": "all"}]
    start(recipe(output_dir=str(one), data=data, num_train_epochs=2, lr_scheduler_type="cosine"))
    values = recipe(output_dir=str(stacked), num_train_epochs=2, lr_scheduler_type="cosine", strategy="stacked")
    assert "phases is not used: strategy is stacked" in plan_of(values)["warnings"]
    start(values)
    ours, theirs = dynamics(one), dynamics(stacked)
    assert {line.pop("phase") for line in ours} == {"all"}
    assert {line.pop("phase") for line in theirs} == {"stacked"}
    assert ours == theirs
    assert state(one / "checkpoint-20") == state(stacked / "checkpoint-20")
    assert not (stacked / "phases.json").exists()


def plan_of(values: dict[str, Any]) -> dict[str, Any]:
    from sengi.train.distributed import start_world
    from sengi.train.setup import set_up

    return set_up(resolve_recipe(values=values), start_world(), Observer(), None).plan.to_dict()


# The best checkpoint of a phase starts the next one, although newer ones pushed it out of save_total_limit.
@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("optimizer", ["fresh", "keep"])
def test_the_chosen_checkpoint_is_handed_on(
    recipe: Recipe, watched: dict[int, Any], tmp_path: Path, optimizer: str
) -> None:
    run, kept = tmp_path / "run", {"fresh": 1, "keep": 20}[optimizer]
    told = start(recipe(phases={"select": "heldout_loss", "optimizer": optimizer}, save_total_limit=kept, save_steps=1))
    first, second = records(run)
    assert (first["phase"], first["chosen_step"], first["chosen_score"]) == ("facts", 4, 2.0)
    assert [one["step"] for one in first["candidates"]] == [2, 4, 6]
    # samples of the first phase count in full; beside it what led to the chosen checkpoint: 4 steps of 2
    assert (first["samples_seen"], first["samples_up_to_chosen"]) == (12, 8)
    assert (second["chosen_step"], second["samples_seen_at_chosen"], second["samples_up_to_chosen"]) == (10, 20, 16)
    after_four, begins = watched[5], watched[BORDER + 1]
    for name, weights in begins["weights"].items():
        assert torch.equal(weights, after_four["weights"][name])
    assert any(not torch.equal(watched[6]["weights"][name], weights) for name, weights in begins["weights"].items())
    assert begins["moments"].keys() == (after_four["moments"].keys() if optimizer == "keep" else set())
    for name, moments in begins["moments"].items():
        assert torch.equal(moments, after_four["moments"][name])
    assert any("phase facts ended at step 6: checkpoint-4 with heldout_loss 2 starts" in line for line in told.messages)
    # numbered on through the run; names, epochs and warm-up are those of the phase
    lines = dynamics(run)
    assert [line["step"] for line in lines] == list(range(1, LAST + 1))
    assert [line["phase"] for line in lines] == ["facts"] * 6 + ["skills"] * 4
    assert [line["samples_seen"] for line in lines] == list(range(2, 22, 2))
    assert (lines[5]["epoch"], lines[6]["epoch"], lines[9]["epoch"]) == (1, 0.25, 1)
    assert [line["learning_rate"] for line in lines[:2]] == [line["learning_rate"] for line in lines[6:8]]
    left = [path.name for path in storage.published(run, "checkpoint-")]
    if kept > 1:  # the weights that a phase begins with are those of the folder that people load
        exported = load_file(run / "checkpoint-4" / "model.safetensors")
        assert all(torch.equal(weights, exported[name]) for name, weights in begins["weights"].items())
        assert len(left) == LAST
    else:
        assert left == ["checkpoint-10"]


def test_each_phase_has_its_own_rate_batch_and_epochs(recipe: Recipe, tmp_path: Path) -> None:
    own = {"skills": {"learning_rate": 5e-4, "effective_batch_size": 4, "num_train_epochs": 2, "warmup_steps": 0}}
    start(recipe(phases={"settings": own}))
    lines = dynamics(tmp_path / "run")
    assert [line["samples_seen"] for line in lines] == [2, 4, 6, 8, 10, 12, 16, 20, 24, 28]
    assert [line["learning_rate"] for line in lines] == [5e-4, *[1e-3] * 5, *[5e-4] * 4]
    assert [line["epoch"] for line in lines[6:]] == [0.5, 1.0, 1.5, 2.0]
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [phase["last_step"] for phase in plan["phases"]] == [6, 10]
    assert (plan["steps"], plan["last_step_samples"]) == (10, 4)
    # the ledger knows the samples of a step behind a border, and the record proves it
    places, verified = step_ledger(tmp_path / "run", 7)
    assert verified
    assert len(places) == 4
    assert all("skills.jsonl:" in place for place in places)


# A phase ends with an evaluation and a checkpoint wherever the rhythm of both would leave it out.
def test_every_phase_ends_with_scores_and_a_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    start(recipe(phases={}, eval_steps=None, eval_samples=None, save_samples=None, save_total_limit=20))
    run = tmp_path / "run"
    assert [path.name for path in storage.published(run, "checkpoint-")] == ["checkpoint-6", "checkpoint-10"]
    assert sorted(path.name for path in (run / "evaluations").glob("*heldout.json")) == [
        f"step-{step:08d}-heldout.json" for step in (0, 6, 10)
    ]
    assert [record["chosen_step"] for record in records(run)] == [6, 10]


# A score of tasks chooses, from checkpoints scored here or in the second process.
@pytest.mark.parametrize("process", ["same", pytest.param("second", marks=pytest.mark.slow)])
def test_a_score_of_tasks_chooses(recipe: Recipe, parts: Path, tmp_path: Path, process: str) -> None:
    tasks = {"eval_tasks": [f"questions:{parts / 'own.jsonl'}"], "eval_process": process}
    start(recipe(phases={"select": "own/accuracy"}, eval_data=None, **tasks))
    first, second = records(tmp_path / "run")
    assert [one["step"] for one in first["candidates"]] == [2, 4, 6]
    best = max(first["candidates"], key=lambda one: (one["score"], -one["step"]))
    assert (first["chosen_step"], first["chosen_score"]) == (best["step"], best["score"])
    assert [one["step"] for one in second["candidates"]] == [8, 10]


def test_a_score_that_is_never_taken_is_found_before_training(recipe: Recipe, parts: Path, tmp_path: Path) -> None:
    tasks = {"eval_tasks": [f"questions:{parts / 'own.jsonl'}"], "eval_data": None}
    with pytest.raises(RecipeError, match=r"phases.select: eval_tasks give no score 'own/acuracy'; there is own/acc"):
        start(recipe(phases={"select": "own/acuracy"}, **tasks))
    assert not (tmp_path / "run" / "dynamics.jsonl").exists()


def test_a_phase_without_any_score_cannot_choose(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover.Handover, "_scores", lambda *_: [])
    with pytest.raises(SengiError, match="phase facts: no checkpoint of it has a score of 'heldout_loss'"):
        start(recipe())
    monkeypatch.undo()
    start(recipe())
    assert len(dynamics(tmp_path / "run")) == LAST


# Where a score chooses, evaluations are no longer free to change: they decide the weights.
def test_evaluations_that_choose_cannot_change(recipe: Recipe) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_at_step(patch, 4)
        with pytest.raises(Broken):
            start(recipe())
    with pytest.raises(InputError, match=r"holds a run of another recipe .*eval_steps was 2, is 3"):
        start(recipe(eval_steps=3))


def test_phases_by_a_column_and_by_length(recipe: Recipe, tmp_path: Path) -> None:
    start(recipe(phases={"by": "level", "at": 0.3, "order": ["part-2", "part-1"]}, output_dir=str(tmp_path / "a")))
    assert [line["phase"] for line in dynamics(tmp_path / "a")] == ["part-2"] * 7 + ["part-1"] * 3
    start(recipe(phases={"by": "response_length", "replay": 0.2}, output_dir=str(tmp_path / "b"), max_steps=7))
    assert [line["phase"] for line in dynamics(tmp_path / "b")] == ["part-1"] * 3 + ["part-2"] * 4


# Two processes train the same samples in the same phases, and choose the same checkpoint; also where they take a run
# over between two phases, score its border, and load an earlier checkpoint than the last.
def test_two_processes_hand_over_as_one(recipe: Recipe, tmp_path: Path) -> None:
    phases = {"by": "level", "at": 0.5, "select": "heldout_loss", "replay": 0.2}
    values = recipe(phases=phases, save_total_limit=20)
    names = ("one", "two", "border-one", "border-two")
    one, two, border_one, border_two = (tmp_path / name for name in names)
    files = {name: tmp_path / f"{name}.json" for name in names}
    for name, file in files.items():
        file.write_text(json.dumps(values | {"output_dir": str(tmp_path / name)}))
    start(values | {"output_dir": str(one)})
    for folder in (border_one, border_two):
        shutil.copytree(one, folder)
        border = records(one)[0]["last_step"]
        go_back_to(folder, border)
        pretend_best(folder, border - 1)
    start(values | {"output_dir": str(border_one)})
    launch(tmp_path, [f"2:{files['two']}", f"2:{files['border-two']}"])
    assert records(border_one)[0]["chosen_step"] == border - 1
    for alone, together in ((one, two), (border_one, border_two)):
        assert [r["chosen_step"] for r in records(together)] == [r["chosen_step"] for r in records(alone)]
        for ours, theirs in zip(dynamics(together), dynamics(alone), strict=True):
            assert (ours["samples_sha256"], ours["phase"]) == (theirs["samples_sha256"], theirs["phase"])
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def go_back_to(run: Path, step: int) -> None:
    """The run as a kill leaves it that comes after the last save of a phase, before its score and the choice."""
    for folder in storage.published(run, "checkpoint-"):
        if int(folder.name.removeprefix("checkpoint-")) > step:
            storage.remove(folder)
    (run / "phases.json").unlink()
    for path in (run / "evaluations").iterdir():
        if int(path.name.split("-")[1].partition(".")[0]) >= step:
            path.unlink()


def pretend_best(run: Path, step: int) -> None:
    """Give the held-out loss of ``step`` a value that no other can beat."""
    path = run / "evaluations" / f"step-{step:08d}-heldout.json"
    content = json.loads(path.read_text())
    content["scores"][0]["value"] = 0.001
    path.write_text(json.dumps(content))


def launch(folder: Path, runs: list[str]) -> None:
    """Two processes that train one run after another."""
    (folder / "talk").mkdir()
    command = [str(Path(__file__).parents[1] / "rank_program.py"), str(folder / "talk"), *runs]
    done = warm.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, ranks=2, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
