"""The Optuna index: one study for each folder, and never anything else than what the folders say."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sengi.study.database import shared_name
from sengi.study.scheduler import run_study
from sengi.study.study_file import StudyRequest, read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, write_heldout, write_study
from test_survivors import CALM_AND_WILD, TERMINATE, Dies

Trials = list[tuple[str, float | None]]


def trials(folder: Path, name: str = "study", url: str = "") -> Trials:
    import optuna

    study = optuna.load_study(study_name=name, storage=url or f"sqlite:///{folder}/study.db")
    return [(trial.state.name, trial.value) for trial in study.get_trials()]


def go(request: StudyRequest, executor: FakeExecutor | None = None) -> list[dict[str, Any]]:
    return run_study(request, make_executor=lambda asked: executor or FakeExecutor())


def in_shared(path: Path, url: str) -> StudyRequest:
    """The study with its index in a database that others use, too; SQLite in place of PostgreSQL."""
    request = read_study(path)
    return replace(request, file=request.file.model_copy(update={"storage": url}))


def test_a_folder_that_was_deleted_and_begun_again_is_a_new_study_in_a_shared_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    request = in_shared(write_study(tmp_path), url)
    old = go(request)
    first = shared_name(tmp_path / "study")
    shutil.rmtree(tmp_path / "study")
    # as on another machine with the same path, and other data under it
    worse = FakeExecutor(curve=lambda recipe, samples: (8 - samples / 4000, 1.0))
    new = go(request, worse)
    second = shared_name(tmp_path / "study")
    assert second != first
    assert trials(tmp_path, second, url) == [("COMPLETE", row["score"]) for row in new]
    assert trials(tmp_path, first, url) == [("COMPLETE", row["score"]) for row in old]
    # a folder keeps its name, one that has none is given one, and loses nothing
    assert go(request, worse) == new
    assert shared_name(tmp_path / "study") == second
    (tmp_path / "study/study-id.json").unlink()
    go(request, worse)
    third = shared_name(tmp_path / "study")
    assert third != second
    assert trials(tmp_path, third, url) == [("COMPLETE", row["score"]) for row in new]


def test_a_trial_that_says_something_else_than_the_folders_is_put_right(tmp_path: Path) -> None:
    request = read_study(write_study(tmp_path))
    rows = go(request)
    write_heldout(tmp_path / "study/runs/002-s42", 250, 4000, 7.5)
    go(request)
    assert trials(tmp_path / "study") == [
        ("COMPLETE", rows[0]["score"]),
        ("COMPLETE", 7.5),
        ("COMPLETE", rows[2]["score"]),
    ]
    # a point whose folder is gone is no longer known, and is run again
    shutil.rmtree(tmp_path / "study/runs/003-s42")
    go(request)
    assert [value for _, value in trials(tmp_path / "study")] == [rows[0]["score"], 7.5, rows[2]["score"]]


def test_a_condemned_run_that_went_on_is_no_pruned_point(tmp_path: Path) -> None:
    request = read_study(write_study(tmp_path, space=CALM_AND_WILD, early_termination=TERMINATE))
    wild = go(request, Dies(2))[1]
    assert ("COMPLETE", wild["score"]) in trials(tmp_path / "study")
    go(request, Dies(2))
    assert sorted(trials(tmp_path / "study"), key=str) == [("COMPLETE", wild["score"]), ("FAIL", None)]


def test_a_trial_with_other_settings_than_its_folder_is_put_right(tmp_path: Path) -> None:
    import optuna

    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    request = read_study(write_study(tmp_path, space=space, num_trials=2))
    rows = go(request)
    (tmp_path / "study/runs/002-s42/settings.json").write_text(json.dumps({"learning_rate": 5e-3}))
    go(request)
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{tmp_path}/study/study.db")
    assert [trial.params for trial in study.get_trials()] == [rows[0]["settings"], {"learning_rate": 5e-3}]
