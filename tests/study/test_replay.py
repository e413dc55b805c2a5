"""Replay: what each policy would have saved and cost, and what is said about it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.cli.app import run as sengi
from sengi.errors import InputError
from sengi.study import replay as replay_module
from sengi.study.findings import correlations, sentences, spearman
from sengi.study.recording import Point
from sengi.study.replay import Recording, replay
from sengi.study.replay_study import replay_study
from sengi.study.scheduler import run_study
from sengi.study.study_file import read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, write_study
from synthetic import SETTINGS, run


@pytest.fixture(autouse=True, scope="module")
def _few_orders() -> Iterator[None]:
    """Three orders of the runs tell a test as much as twelve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_module, "ORDERS", 3)
        patch.setattr(replay_module, "DRAWS", 300)
        yield


def recording(name: str, pace: float, norm: float, score: float, seed: int = 0, group: str = "") -> Recording:
    """A run with a final held-out loss, evaluated five times on the way: further from the end it is higher."""
    told = run(name, pace, norm, seed=seed, settings=group)
    points = [Point(800 * n, score + (5 - n) * 0.1, math.nan, math.nan) for n in range(6)]
    return Recording(told, tuple(points))


def as_the_paper_says(count: int = 6) -> list[Recording]:
    """The calmer, the better in the end: norm and pace rise together, and so does the final loss."""
    return [recording(f"run-{n}", 0.8 + 0.1 * n, 1 + 0.2 * n, 2 + 0.05 * n) for n in range(count)]


def the_other_way(count: int = 6) -> list[Recording]:
    """What pruners hope for: who is ahead stays ahead."""
    return [recording(f"run-{n}", 0.8 + 0.1 * n, 1 + 0.2 * n, 3 - 0.05 * n) for n in range(count)]


def by_policy(recordings: list[Recording]) -> dict[str, tuple[float, float]]:
    return {o.policy: (o.saved, o.regret) for o in replay(recordings, SETTINGS, minimize=True)}


def test_where_the_paper_is_right_the_judge_saves_and_train_loss_misleads() -> None:
    found = by_policy(as_the_paper_says())
    assert found["no stopping"] == (0, 0)
    saved, regret = found["judge, runs side by side"]
    assert saved > 0.5
    assert regret == 0
    assert found["judge, one run after another"][0] > 0.2
    assert found["judge, one run after another"][1] == 0
    # the best run learns slowest: pruning on train loss loses it in most orders
    assert found["ASHA on train loss"][1] > 0
    assert found["median rule on train loss"][0] > 0


def test_where_it_is_not_the_replay_says_so_and_advises_against_stopping() -> None:
    recordings = the_other_way()
    outcomes = replay(recordings, SETTINGS, minimize=True)
    found = correlations(recordings, SETTINGS, minimize=True)
    assert all(correlation.contradicts for correlation in found)
    said = sentences(outcomes, found, 0.01)
    assert said[0].startswith(
        "The early signals do not predict the final ranking here (early loss points the other way"
    )
    assert any("did better on these recordings" in line for line in said)
    assert said[-1].startswith("Recommendation: do not stop runs")


def test_where_it_is_right_the_replay_recommends_it() -> None:
    recordings = as_the_paper_says()
    said = sentences(
        replay(recordings, SETTINGS, minimize=True), correlations(recordings, SETTINGS, minimize=True), 0.01
    )
    assert said[0].startswith("The early signals predict the final ranking here")
    assert said[-1].startswith("Recommendation: stop early")


def test_pruners_that_had_nothing_to_see_are_not_counted_as_failures() -> None:
    recordings = as_the_paper_says()
    # only the untouched model and the end were scored
    ends = [replace(one, evaluations=(one.evaluations[0], one.evaluations[-1])) for one in recordings]
    assert "ASHA on the objective" in by_policy(recordings)
    assert {name for name in by_policy(ends) if "objective" in name} == set()
    found = correlations(ends, SETTINGS, minimize=True)
    said = sentences(replay(ends, SETTINGS, True), found, 0.01)
    assert any(line.startswith("Pruners on the objective were not replayed: no run was evaluated") for line in said)
    assert not any("were not replayed" in line for line in sentences(replay(recordings, SETTINGS, True), found, 0.01))


def test_a_replay_is_the_same_each_time_and_in_any_order() -> None:
    recordings = as_the_paper_says(4)
    assert replay(recordings, SETTINGS, True) == replay(recordings[::-1], SETTINGS, True)


def test_the_mode_of_the_study_does_not_change_the_replay() -> None:
    recordings = as_the_paper_says(4)
    told = replay(recordings, replace(SETTINGS, mode="advise", audit=1.0), True)
    assert told == replay(recordings, SETTINGS, True)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.floats(1, 3), min_size=4, max_size=5), st.booleans())
def test_regret_is_never_negative_and_nothing_is_saved_for_nothing(scores: list[float], minimize: bool) -> None:
    recordings = [recording(f"run-{n}", 0.8 + 0.1 * n, 1 + 0.3 * n, score) for n, score in enumerate(scores)]
    for outcome in replay(recordings, SETTINGS, minimize):
        assert outcome.regret >= 0
        assert 0 <= outcome.saved < 1
        assert (outcome.stopped == 0) == (outcome.saved == 0)
        assert outcome.stopped or outcome.regret == 0
        assert 0 <= outcome.low <= outcome.high


def test_three_runs_are_too_few() -> None:
    with pytest.raises(InputError, match="a replay needs 4 finished runs or more, here are 3"):
        replay(as_the_paper_says(3), SETTINGS, True)


def test_the_interval_of_a_rank_correlation_covers_the_truth() -> None:
    # normal pairs with rho 0.5: Spearman's value in the population is 6/pi * asin(rho/2)
    rng = np.random.default_rng(0)
    truth, hits = 6 / math.pi * math.asin(0.25), 0
    for _ in range(300):
        x = rng.standard_normal(20)
        y = 0.5 * x + math.sqrt(0.75) * rng.standard_normal(20)
        told = spearman("x", 1, x.tolist(), y.tolist(), len(x))
        hits += told.low <= truth <= told.high
    assert 0.91 <= hits / 300 <= 0.985


@pytest.mark.parametrize(("values", "scores"), [([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), ([1.0] * 5, [1.0, 2, 3, 4, 5])])
def test_a_rank_correlation_that_does_not_exist_predicts_nothing(values: list[float], scores: list[float]) -> None:
    told = spearman("x", 1, values, scores, len(values))
    assert not told.predicts
    assert not told.contradicts
    assert (told.low, told.high) == (-1, 1)


def test_the_command_replays_a_study_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_study(tmp_path, space={"learning_rate": [1e-3, 2e-3, 3e-3, 4e-3]}, seeds=[1])
    run_study(read_study(path), make_executor=lambda asked: FakeExecutor(room=4, broken=()))
    told = replay_study(tmp_path / "study")
    assert (told.runs, told.objective, told.left_out) == (4, "heldout_loss", [])
    assert sengi(["study", "replay", str(tmp_path / "study"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["studies"][0]["findings"] == told.findings
    assert sengi(["study", "status", str(tmp_path / "study")]) == 0
    assert "001-s1" in capsys.readouterr().out
    assert sengi(["study", "stop", str(tmp_path / "study")]) == 2
    assert "there is nothing to stop" in capsys.readouterr().err
    assert sengi(["study", "replay", str(tmp_path)]) == 2
    assert "no study" in capsys.readouterr().err


def test_what_cannot_be_replayed_is_named_and_the_rest_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rates in (("many", [1e-3, 2e-3, 3e-3, 4e-3]), ("few", [1e-3, 2e-3])):
        path = write_study(tmp_path, space={"learning_rate": rates}, output_dir=str(tmp_path / name))
        run_study(read_study(path), make_executor=lambda asked: FakeExecutor(room=4))
    many, few = str(tmp_path / "many"), str(tmp_path / "few")
    output = tmp_path / "a/new/folder/replay.json"
    assert sengi(["study", "replay", few, many, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    reason = f"{few}: a replay needs 4 finished runs or more, here are 2; finish more of them"
    assert f"left out: {reason}" in said
    assert "judge, one run after another" in said
    told = json.loads(output.read_text())
    assert [one["study"] for one in told["studies"]] == [many]
    assert told["left_out"] == [reason]
    assert sengi(["study", "replay", few]) == 2
    assert "a replay needs 4 finished runs or more" in " ".join(capsys.readouterr().err.split())
    # an output that cannot be written is an error of one sentence
    assert sengi(["study", "replay", many, "--output", str(tmp_path / "many/request.json/replay.json")]) == 1
    assert "request.json" in capsys.readouterr().err
    assert sengi(["study", "replay", many, "--output", str(tmp_path)]) == 1
    assert "unforeseen" not in capsys.readouterr().err


def test_seeds_of_a_setting_are_not_counted_as_settings() -> None:
    once = as_the_paper_says(4)
    twice = [*once, *(replace(r, history=replace(r.history, name=f"{r.history.name}-again")) for r in once)]
    few, many = (correlations(recordings, SETTINGS, minimize=True)[0] for recordings in (once, twice))
    assert (few.n, many.n) == (4, 4)
    assert (few.low, few.high) == (many.low, many.high)


def test_only_runs_that_can_be_held_against_each_other_are_correlated() -> None:
    many, few = as_the_paper_says(5), the_other_way()[:4]
    few = [replace(r, history=replace(r.history, name=f"other-{r.history.name}", group="adapter")) for r in few]
    alone, mixed = (correlations(recordings, SETTINGS, minimize=True) for recordings in (many, [*few, *many]))
    assert [replace(one, apart=0) for one in mixed] == alone
    assert {one.apart for one in mixed} == {4}
    said = sentences(replay(many, SETTINGS, True), mixed, 0.01)
    assert any(line.endswith("; 4 run(s) of other data, phases or method are not among them.") for line in said)


def test_where_nothing_is_saved_stopping_is_not_recommended() -> None:
    recordings = as_the_paper_says()
    found = correlations(recordings, SETTINGS, minimize=True)
    outcomes = [replace(one, saved=0.0, regret=0.0) for one in replay(recordings, SETTINGS, minimize=True)]
    assert sentences(outcomes, found, 0.01)[-1].startswith("Recommendation: do not stop runs")
