"""Evaluations in a run folder: none replaces another's, none is read half written, all lie on the run's axes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sengi import storage
from sengi.disk import disk
from sengi.errors import CheckpointError, StorageError
from sengi.evaluate import run_evaluations
from sengi.evaluation import Evaluation

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def evaluation(value: float, n: int = 20) -> Evaluation:
    score = {"task": "own", "metric": "accuracy", "group": "all", "value": value, "low": 0.1, "high": math.nan, "n": n}
    item = {"task": "own", "id": "1", "metric": "accuracy", "correct": math.inf}
    return Evaluation([score], [item], [{"task": "own", "id": "7", "reason": "too long"}], notes=["cut 1 prompt"])


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "evaluations").iterdir())


def test_what_is_written_is_read_back_with_its_place_on_both_axes(tmp_path: Path) -> None:
    run_evaluations.write_tasks(tmp_path, 20, A, "run/checkpoint-20", 640, evaluation(0.5))
    run_evaluations.write_tasks(tmp_path, 0, A, "base", 0, evaluation(0.25))
    found = run_evaluations.read_tasks(tmp_path, A)
    assert list(found) == [0, 20]
    assert (found[20]["samples_seen"], found[20]["model"]) == (640, "run/checkpoint-20")
    assert found[20]["excluded"] == [{"task": "own", "id": "7", "reason": "too long"}]
    assert found[20]["notes"] == ["cut 1 prompt"]
    # JSON knows neither NaN nor infinity
    assert found[20]["scores"][0]["high"] is None
    assert run_evaluations.read_results(found[20]) == [
        {"task": "own", "id": "1", "metric": "accuracy", "correct": None}
    ]
    (key, points), *rest = run_evaluations.timelines(found).items()
    assert (key, rest) == (("own", "accuracy", "all"), [])
    assert [(point.step, point.samples_seen, point.value, point.n) for point in points] == [
        (0, 0, 0.25, 20),
        (20, 640, 0.5, 20),
    ]
    assert math.isnan(points[0].high)


# The first suite of a step has the plain name; later ones are named by their fingerprint and written beside it.
def test_suites_do_not_replace_each_other(tmp_path: Path) -> None:
    for data, value in ((A, 0.1), (B, 0.2), (C, 0.3), (A, 0.4), (B, 0.5)):
        run_evaluations.write_tasks(tmp_path, 3, data, "m", 9, evaluation(value))
    assert [name for name in names(tmp_path) if not name.endswith(".items.jsonl")] == [
        "step-00000003-tasks-bbbbbbbb.json",
        "step-00000003-tasks-cccccccc.json",
        "step-00000003-tasks.json",
    ]
    values = [run_evaluations.read_tasks(tmp_path, data)[3]["scores"][0]["value"] for data in (A, B, C)]
    assert values == [0.4, 0.5, 0.3]


def test_other_kinds_and_broken_files_are_no_scores_of_a_suite(tmp_path: Path) -> None:
    run_evaluations.write_evaluation(tmp_path, 3, "heldout", {"data": A, "scores": []}, [])
    (tmp_path / "evaluations" / "step-00000004-tasks.json").write_text('{"data": "aaa')
    assert run_evaluations.read_tasks(tmp_path, A) == {}
    assert run_evaluations.has_evaluation(tmp_path, 3, "heldout", A)
    assert not run_evaluations.has_evaluation(tmp_path, 3, "heldout", B)
    assert not run_evaluations.has_evaluation(tmp_path, 4, "tasks", A)  # it is made anew


# A run that starts while another process writes sweeps its temporary file away: that is no failure of the disk.
def test_a_temporary_file_that_was_swept_is_written_again(tmp_path: Path) -> None:
    swept = []

    def sweep(name: str, number: int, path: Path) -> int | None:
        if name == "rename" and path.name.endswith("tasks.json") and not swept:
            swept.extend(storage.sweep(tmp_path / "evaluations"))
        return None

    disk.fault = sweep
    try:
        run_evaluations.write_tasks(tmp_path, 3, A, "m", 9, evaluation(0.5))
    finally:
        disk.fault = None
    assert len(swept) == 1
    assert list(run_evaluations.read_tasks(tmp_path, A)) == [3]


def test_a_failing_disk_is_told(tmp_path: Path) -> None:
    def full(name: str, number: int, path: Path) -> int | None:
        if name == "write":
            raise OSError(28, "No space left on device")
        return None

    disk.fault = full
    try:
        with pytest.raises(StorageError, match="free space"):
            run_evaluations.write_tasks(tmp_path, 3, A, "m", 9, evaluation(0.5))
    finally:
        disk.fault = None
    assert run_evaluations.read_tasks(tmp_path, A) == {}


def test_answers_of_an_unfinished_evaluation_stay_until_it_succeeds(tmp_path: Path) -> None:
    def interrupted() -> None:
        with run_evaluations.unfinished(tmp_path, 3, A) as cache:
            cache.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    with run_evaluations.unfinished(tmp_path, 3, B) as cache:
        assert not cache.exists()  # another suite's answers are no use
    with run_evaluations.unfinished(tmp_path, 3, A) as cache:
        assert cache.read_text() == "half"
        with run_evaluations.unfinished(tmp_path, 3, A) as second:  # another process at the same time
            assert second != cache
            second.write_text("its own")
        assert cache.read_text() == "half"
    assert names(tmp_path) == []


def test_samples_come_from_a_checkpoint_that_verifies(tmp_path: Path) -> None:
    for step, facts in ((1, {"samples_seen": 32}), (2, {})):
        stage = storage.begin(tmp_path / f"checkpoint-{step}")
        stage.write("weights", b"0123")
        storage.publish(stage, tmp_path / f"checkpoint-{step}", facts)
    assert run_evaluations.checkpoint_samples(tmp_path / "checkpoint-1") == 32
    with pytest.raises(CheckpointError, match="does not say how many samples"):
        run_evaluations.checkpoint_samples(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-1" / "weights").write_bytes(b"0124")
    with pytest.raises(CheckpointError, match="content changed"):
        run_evaluations.checkpoint_samples(tmp_path / "checkpoint-1")


def test_files_are_plain_json(tmp_path: Path) -> None:
    run_evaluations.write_tasks(tmp_path, 3, A, "m", 9, evaluation(math.nan))
    text = (tmp_path / "evaluations" / "step-00000003-tasks.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["scores"][0]["value"] is None
