"""A team's studies in a real PostgreSQL: what it holds, and what happens when it is not there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sengi.errors import InputError
from sengi.study import scheduler
from sengi.study.database import shared_name
from sengi.study.scheduler import StudyObserver, run_study
from sengi.study.study_file import read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, write_study
from postgres import PASSWORD, Server, postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setattr(scheduler, "POLL", 0.0)


def trials(server: Server, folder: Path) -> list[tuple[str, dict[str, Any], float | None]]:
    import optuna

    study = optuna.load_study(study_name=shared_name(folder), storage=server.url)
    return [(trial.state.name, trial.params, trial.value) for trial in study.get_trials()]


def go(path: Path, observer: StudyObserver | None = None, room: int = 2) -> list[dict[str, Any]]:
    return run_study(read_study(path), observer, make_executor=lambda asked: FakeExecutor(room))


def test_the_state_of_two_studies_is_in_the_database(tmp_path: Path, server: Server) -> None:
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    searched = write_study(tmp_path, storage=server.url, space=space, num_trials=4, output_dir=str(tmp_path / "one"))
    rows = go(searched, room=1)
    grid = write_study(tmp_path, storage=server.url, output_dir=str(tmp_path / "two"))
    others = go(grid)
    # one trial a point in each of them; values as PostgreSQL keeps them
    for found, expected in ((trials(server, tmp_path / "one"), rows), (trials(server, tmp_path / "two"), others)):
        assert [state for state, _, _ in found] == ["COMPLETE"] * len(expected)
        assert [params for _, params, _ in found] == [row["settings"] for row in expected]
        assert [value for _, _, value in found] == [pytest.approx(row["score"]) for row in expected]
    # nothing of it is kept beside the runs, and the password nowhere
    assert not list(tmp_path.glob("*/study.db"))
    held = [file for file in tmp_path.glob("**/*") if file.is_file() and PASSWORD.encode() in file.read_bytes()]
    assert held == []
    assert go(grid) == others


def test_a_server_that_dies_on_the_way_costs_nothing_and_is_mended(tmp_path: Path, server: Server) -> None:
    path = write_study(tmp_path, storage=server.url, early_termination={"mode": "off"})
    said: list[str] = []

    class Outage(StudyObserver):
        def rows(self, rows: list[dict[str, Any]]) -> None:
            if rows[0]["samples_seen"] > 400:
                server.stop()

        def message(self, text: str) -> None:
            said.append(text)

    rows = go(path, Outage())
    assert {row["state"] for row in rows} == {"finished"}
    assert said
    assert all(text.startswith("the database failed (") for text in said)
    with pytest.raises(InputError, match="cannot be used"):  # at the start it must answer
        go(path)
    server.start()
    assert go(path) == rows
    assert [value for _, _, value in trials(server, tmp_path / "study")] == [pytest.approx(r["score"]) for r in rows]


def test_a_wrong_password_is_an_error_before_any_run(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(InputError, match=r"password authentication failed.*check its address"):
        go(write_study(tmp_path, storage=server.url))
    assert not (tmp_path / "study/runs").exists()
