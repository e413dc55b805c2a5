"""Runs in phases: what is handed on, what an interruption cannot change, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.model.tiny_folder import write_tiny_folder

from sengi import storage
from sengi.errors import InputError, RecipeError, SengiError
from sengi.recipe_sources import resolve_recipe
from sengi.train import evaluation, fit, handover, setup
from sengi.train.ledger import step_ledger
from sengi.train.loop import Loop
from sengi.train.observer import Observer
from sengi.train.run import train
from sengi.train.snapshot import trained

TIMING = {"tokens_per_second", "mfu", "step_seconds", "data_wait_seconds", "peak_memory_bytes"}
ROOT = Path(__file__).parents[2]
FACTS, SKILLS = 12, 8  # samples
BORDER, LAST = 6, 10  # batch 2, one epoch: six steps of facts, four of skills
LOSSES = [9.0, 3.0, 2.0, 2.5, 2.4, 2.2, 2.1]  # pretended at steps 0, 2, 4, 6, 8, 10: step 4 is the best of facts


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, training data of two phases, held-out data, questions."""
    folder = tmp_path_factory.mktemp("parts")
    write_tiny_folder(folder / "model")
    for name, first, count in (("facts", 0, FACTS), ("skills", 20, SKILLS), ("heldout", 50, 3)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"What is {n} plus {n % 7}?"},
                    {"role": "assistant", "content": "It is " + f"{n + n % 7}, " * (1 + n % 5)},
                ],
                "phase": name,
                "level": (n * 5) % 11,
            }
            for n in range(first, first + count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [
        {"question": f"What is {n} plus 1?", "choices": [str(n + 1), str(n)], "answer": 0, "id": f"q{n}"}
        for n in range(4)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


Recipe = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def forecasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rough forecasts: a good half of so small a run is to trace its memory and to measure the machine."""

    def untraced(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(fit, "trace_model", untraced)
    monkeypatch.setattr(setup, "peak_flops", lambda *_: 1e9)


@pytest.fixture
def recipe(parts: Path, tmp_path: Path) -> Recipe:
    """Values of a run of two phases; keyword arguments change or (None) remove keys."""

    def values(**changes: Any) -> dict[str, Any]:
        recipe = {
            "model_name_or_path": str(parts / "model"),
            "data": [{"path": str(parts / "facts.jsonl")}, {"path": str(parts / "skills.jsonl")}],
            "eval_data": [{"path": str(parts / "heldout.jsonl")}],
            "output_dir": str(tmp_path / "run"),
            "strategy": "phased",
            "phases": {"select": "heldout_loss"},
            "effective_batch_size": 2,
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
            "max_tokens_per_device": 128,
            "dtype": "float32",
            "eval_steps": 2,
            "save_total_limit": 2,
        }
        return {key: value for key, value in (recipe | changes).items() if value is not None or key not in recipe}

    return values


class Told(Observer):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def start(values: dict[str, Any]) -> Told:
    told = Told()
    train(resolve_recipe(values=values), told)
    return told


def dynamics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "dynamics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def state(checkpoint: Path) -> dict[str, bytes]:
    """Weights, master weights and both moments of a checkpoint."""
    files = {str(p.relative_to(checkpoint)): p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if name.endswith((".safetensors", "layout.json"))}


def records(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "phases.json").read_text())["phases"])


def result(run: Path, last: int = LAST) -> tuple[Any, ...]:
    """All that an interruption must not change."""
    return dynamics(run), state(run / f"checkpoint-{last}"), (run / "phases.json").read_bytes()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses by step that make the middle checkpoint of the first phase the best."""
    write = evaluation.RunFolder.write_evaluation

    def pretend(self: Any, step: int, kind: str, content: dict[str, Any], items: list[Any]) -> None:
        content["scores"][0]["value"] = LOSSES[step // 2]
        write(self, step, kind, content, items)

    monkeypatch.setattr(evaluation.RunFolder, "write_evaluation", pretend)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, dict[str, torch.Tensor]]]:
    """Weights and moments by the number of the step that begins with them."""
    before: dict[int, dict[str, dict[str, torch.Tensor]]] = {}
    step = Loop._train_step

    def watch(loop: Loop, number: int) -> None:
        moments = {
            name: loop.optimizer.state[p]["exp_avg"].clone()
            for name, p in trained(loop.model)
            if "exp_avg" in loop.optimizer.state[p]
        }
        weights = {name: p.detach().clone() for name, p in trained(loop.model)}
        before[number] = {"weights": weights, "moments": moments}
        step(loop, number)

    monkeypatch.setattr(Loop, "_train_step", watch)
    return before


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


class Broken(BaseException):
    """An end without any clean-up, as a kill in this process."""


def break_at(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """End the run at a moment around its border."""

    def broken(*_: Any, **__: Any) -> None:
        raise Broken

    if moment == "before the border is scored":
        heldout = evaluation.Evaluations.heldout

        def score(self: Any, step: int, *rest: Any) -> None:
            broken() if step == BORDER else heldout(self, step, *rest)

        monkeypatch.setattr(evaluation.Evaluations, "heldout", score)
    elif moment == "before the choice is written":
        monkeypatch.setattr(handover.Handover, "_write", broken)
    elif moment == "after the choice is written":
        write = handover.Handover._write

        def write_and_break(self: Any, done: list[Any]) -> None:
            write(self, done)
            broken()

        monkeypatch.setattr(handover.Handover, "_write", write_and_break)
    else:
        at = {"before the first step": BORDER + 1, "before the first checkpoint": BORDER + 2, "inside": 4}[moment]
        step = Loop._train_step

        def train_step(loop: Loop, number: int) -> None:
            broken() if number == at else step(loop, number)

        monkeypatch.setattr(Loop, "_train_step", train_step)


MOMENTS = [
    "inside",
    "before the border is scored",
    "before the choice is written",
    "after the choice is written",
    "before the first step",
    "before the first checkpoint",
]


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


def break_at_step(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    step = Loop._train_step

    def train_step(loop: Loop, number: int) -> None:
        if number == at:
            loop.saver.finish()
            raise Broken
        step(loop, number)

    monkeypatch.setattr(Loop, "_train_step", train_step)


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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("rank_program.py")), str(folder / "talk"), *runs]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
