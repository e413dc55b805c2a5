"""`sengi eval RUN`: every checkpoint and the base once, what is there already never again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.model.tiny_folder import write_tiny_folder

from sengi import storage
from sengi.errors import InputError, StorageError
from sengi.evaluate import checkpoints
from sengi.evaluate.checkpoints import evaluate_run
from sengi.evaluate.run_evaluations import read_tasks
from sengi.evaluate.suite import Suite, fingerprint
from sengi.evaluation import Evaluation
from sengi.model.load import load_model


def publish(run: Path, step: int, source: Path) -> None:
    """A checkpoint as training publishes it: a model folder with a manifest."""
    stage = storage.begin(run / f"checkpoint-{step}")
    for file in sorted(source.iterdir()):
        stage.write(file.name, file.read_bytes())
    storage.publish(stage, run / f"checkpoint-{step}", {"step": step, "samples_seen": 8 * step})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        write_tiny_folder(folder / str(seed), seed)
    return folder


@pytest.fixture
def run(tmp_path: Path, models: Path) -> Path:
    """A run of two checkpoints."""
    run = tmp_path / "run"
    run.mkdir()
    write_training(tmp_path, "What is your name?")
    data = [str(tmp_path / "train.jsonl")]
    (run / "recipe.yaml").write_text(
        json.dumps({"model_name_or_path": str(models / "0"), "data": data, "output_dir": str(run)})
    )
    publish(run, 10, models / "1")
    publish(run, 20, models / "2")
    return run


def write_training(folder: Path, *questions: str) -> None:
    answer = {"role": "assistant", "content": "Two."}
    rows = [{"messages": [{"role": "user", "content": question}, answer]} for question in questions]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    rows = [
        {"question": f"What is {n} plus 1?", "choices": [str(n + 1), str(n + 2), str(n)], "answer": 0, "id": f"q{n}"}
        for n in range(12)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Suite(tasks=(f"questions:{tmp_path / 'own.jsonl'}",))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the model folders that are scored."""
    found: list[str] = []
    evaluate = checkpoints.evaluate

    def noted(model: Path, *arguments: Any, **options: Any) -> Evaluation:
        found.append(model.name)
        return evaluate(model, *arguments, **options)

    monkeypatch.setattr(checkpoints, "evaluate", noted)
    return found


def test_the_base_and_every_checkpoint_are_scored_once(run: Path, suite: Suite, scored: list[str]) -> None:
    told: list[str] = []
    result = evaluate_run(run, suite, progress=lambda done, total, task: told.append(task))
    assert scored == ["0", "checkpoint-10", "checkpoint-20"]
    assert (result.steps, result.notes) == ([0, 10, 20], [])
    assert {text.partition(":")[0] for text in told} == {"base model", "step 10", "step 20"}
    assert [line.name for line in result.lines] == ["own/accuracy", "own/accuracy_sum"]
    line = result.selected
    assert line.name == "own/accuracy"
    assert [(point.step, point.samples_seen, point.n) for point in line.points] == [(10, 80, 12), (20, 160, 12)]
    assert line.base is not None
    assert line.uncorrected == ""
    assert line.best is not None
    assert line.best.score.n == 6
    # again: nothing is computed, the answer is the same
    again = evaluate_run(run, suite, select="own/accuracy_sum")
    assert len(scored) == 3
    assert again.lines == result.lines
    assert again.selected.metric == "accuracy_sum"


def test_only_what_is_new_is_scored(run: Path, suite: Suite, scored: list[str], models: Path) -> None:
    evaluate_run(run, suite)
    publish(run, 30, models / "0")
    storage.remove(run / "checkpoint-10")  # its scores stay
    result = evaluate_run(run, suite)
    assert scored[3:] == ["checkpoint-30"]
    assert result.steps == [0, 10, 20, 30]
    # the third checkpoint is the base model over again
    line = result.selected
    assert line.base is not None
    assert line.points[-1].value == line.base.value
    # other questions are another evaluation, and the first one stays
    evaluate_run(run, Suite(tasks=suite.tasks, limit=11))
    assert scored[4:] == ["0", "checkpoint-20", "checkpoint-30"]
    assert sorted(read_tasks(run, fingerprint(suite))) == [0, 10, 20, 30]


def test_an_interrupted_evaluation_keeps_what_is_done(
    run: Path, suite: Suite, scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = checkpoints.evaluate

    def interrupted(model: Path, *arguments: Any, **options: Any) -> Evaluation:
        if model.name == "checkpoint-20":
            raise KeyboardInterrupt
        return noted(model, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run, suite)
    assert evaluate_run(run, suite).steps == [0, 10, 20]
    assert scored == ["0", "checkpoint-10", "checkpoint-20"]


def test_a_corrupt_checkpoint_is_left_out_aloud(run: Path, suite: Suite, scored: list[str]) -> None:
    weights = run / "checkpoint-10" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = evaluate_run(run, suite)
    assert (scored, result.steps) == (["0", "checkpoint-20"], [0, 20])
    assert len(result.notes) == 1
    assert result.notes[0].startswith("step 10 is left out: ")
    assert "content changed" in result.notes[0]


def write_broken(folder: Path) -> Path:
    """A model that gives NaN, as after a run that broke."""
    model = load_model(write_tiny_folder(folder))
    model.get_parameter("model.norm.weight").data[:] = float("nan")
    model.save_pretrained(folder)
    return folder


def test_a_checkpoint_of_nan_is_left_out_aloud(run: Path, suite: Suite, scored: list[str], tmp_path: Path) -> None:
    publish(run, 15, write_broken(tmp_path / "broken"))
    result = evaluate_run(run, suite)
    assert (scored[2], result.steps) == ("checkpoint-15", [0, 10, 20])
    [note] = result.notes
    assert note.startswith("step 15 is left out: ")
    assert "are NaN or infinite, so its scores would mean nothing" in note


def test_a_base_model_of_nan_is_left_out_aloud(run: Path, suite: Suite, tmp_path: Path) -> None:
    recipe = json.loads((run / "recipe.yaml").read_text()) | {"model_name_or_path": str(write_broken(tmp_path / "b"))}
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    result = evaluate_run(run, suite)
    assert result.steps == [10, 20]
    assert result.notes[0].startswith("the base model is left out: ")


def test_a_base_model_that_moved_away_is_left_out_aloud(run: Path, suite: Suite) -> None:
    recipe = json.loads((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(json.dumps(recipe | {"model_name_or_path": "/nowhere/model"}))
    result = evaluate_run(run, suite)
    assert result.steps == [10, 20]
    assert result.selected.base is None
    assert result.notes[0].startswith("the base model is left out: ")


def test_a_checkpoint_that_training_removes_meanwhile_is_no_failure(
    run: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = checkpoints.evaluate

    def removed(model: Path, *arguments: Any, **options: Any) -> Evaluation:
        if model.name == "checkpoint-10":
            storage.remove(model)
        return evaluate(model, *arguments, **options)

    monkeypatch.setattr(checkpoints, "evaluate", removed)
    result = evaluate_run(run, suite)
    assert result.steps == [0, 20]
    assert result.notes == ["step 10 is left out: training removed it (save_total_limit) before it was scored"]


def test_what_is_no_run_is_refused(tmp_path: Path, run: Path, suite: Suite) -> None:
    with pytest.raises(InputError, match="no run folder"):
        evaluate_run(tmp_path, suite)
    for step in (10, 20):
        storage.remove(run / f"checkpoint-{step}")
    with pytest.raises(InputError, match="no checkpoint in it to score"):
        evaluate_run(run, suite)


# A note that holds for every checkpoint is printed once.
def test_notes_and_exclusions_are_kept_with_their_steps(
    run: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = checkpoints.evaluate

    def noted(model: Path, *arguments: Any, **options: Any) -> Evaluation:
        found = evaluate(model, *arguments, **options)
        found.notes = ["3 prompts were cut", *(["slow"] if model.name == "checkpoint-20" else [])]
        found.excluded = [{"task": "own", "id": "q99", "reason": "too long"}] if model.name == "checkpoint-10" else []
        return found

    monkeypatch.setattr(checkpoints, "evaluate", noted)
    result = evaluate_run(run, suite)
    assert result.notes == ["3 prompts were cut", "step 20: slow"]
    assert result.excluded == [{"step": 10, "task": "own", "id": "q99", "reason": "too long"}]


def test_groups_are_known_with_their_tasks(run: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = checkpoints.evaluate

    def grouped(model: Path, *arguments: Any, **options: Any) -> Evaluation:
        found = evaluate(model, *arguments, **options)
        found.results = {"group_subtasks": {"both": ["own"], "own": []}}
        found.scores.append(found.scores[0] | {"task": "both"})
        return found

    monkeypatch.setattr(checkpoints, "evaluate", grouped)
    result = evaluate_run(run, suite, select="both")
    assert result.members["both"] == ["own"]
    assert "mmlu" in result.members["open_llm_leaderboard_v1"]
    assert result.selected.uncorrected == ""  # of the questions of its task
    assert result.selected.best == result.lines[0].best


def test_an_unknown_score_names_the_nearest(run: Path, suite: Suite) -> None:
    with pytest.raises(InputError, match="--select own/acuracy: no such score; there is own/accuracy"):
        evaluate_run(run, suite, select="own/acuracy")
    assert evaluate_run(run, suite, select="own").selected.name == "own/accuracy"


def test_heldout_conversations_are_as_long_as_those_of_the_run(run: Path, tmp_path: Path) -> None:
    recipe = json.loads((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(json.dumps(recipe | {"max_length": 24}))
    rows = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a dog " * n}] for n in (1, 2, 40)]
    (tmp_path / "kept.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    result = evaluate_run(run, Suite(tasks=(f"heldout:{tmp_path / 'kept.jsonl'}",)))
    assert [point.n for point in result.selected.points] == [2, 2]
    assert "longer than max_length of the run, 24 tokens" in result.notes[0]


def test_questions_of_the_training_data_are_named(run: Path, suite: Suite, tmp_path: Path) -> None:
    write_training(tmp_path, "Who are you?", "what is 3 plus 1?", "What is 13 plus 1?", "what is  3 plus 1?")
    (note,) = evaluate_run(run, suite).notes
    file = run / "contamination.json"
    train, own = tmp_path / "train.jsonl", tmp_path / "own.jsonl"
    assert note == (
        f"1 of 12 evaluation questions stand in the training data ({own} 1 of 12; the first: {train}:2 as {own}:4): "
        f"their scores can be too good; {file} lists them"
    )
    entry = json.loads(file.read_text())[str(own)]
    assert (entry["found_rows"], entry["training_rows"]) == (["4"], 2)


def test_training_data_that_moved_away_is_told(run: Path, suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").unlink()
    result = evaluate_run(run, suite)
    assert result.lines
    assert result.notes[0].startswith("the questions were not compared with the training data: ")
    assert "train.jsonl" in result.notes[0]


def test_a_run_that_can_only_be_read_is_compared_all_the_same(
    run: Path, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise StorageError("contamination.json: read-only file system")

    monkeypatch.setattr(checkpoints, "write_contamination", refused)
    write_training(tmp_path, "What is 3 plus 1?")
    note, why = evaluate_run(run, suite).notes
    assert note.startswith("1 of 12 evaluation questions stand in the training data")
    assert why == "what was compared is not kept: contamination.json: read-only file system"
