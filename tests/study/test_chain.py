"""A study of stages: each from the best of those before, the same after any kill, and honest about close calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests import warm
from tests.train import crash_harness

from sengi.cli.app import run as sengi
from sengi.errors import InputError, SengiError, StoppedByRequest
from sengi.study import replay_study, scheduler
from sengi.study.chain import Choice, choose, run_chain, stage_folders
from sengi.study.scheduler import StudyObserver
from sengi.study.space import Run
from sengi.study.study_file import read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, Listener, write_study

HERE = Path(__file__).parent
STAGES = {
    "batch-size": {"effective_batch_size": [8, 16, 32]},
    "learning-rate": {"learning_rate": [1e-4, 1e-3, 1e-2]},
    "stacked-vs-phased": {"strategy": ["stacked", "phased"]},
}


def curve(recipe: dict[str, Any], samples: int) -> tuple[float, float]:
    """Best at 16 samples a step, a rate of 1e-3, and stacked."""
    off = {8: 0.2, 16: 0.0, 32: 0.1}[recipe["effective_batch_size"]]
    off += {1e-4: 0.2, 2e-4: 0.15, 1e-3: 0.0, 1e-2: 0.3}[recipe["learning_rate"]]
    off += 0.05 * (recipe.get("strategy") == "phased")
    return 2 + off - samples / 10_000, 1.0


def write_chain(folder: Path, name: str = "study", **more: Any) -> Path:
    recipe = {
        "model_name_or_path": "model",
        "data": ["train.jsonl"],
        "eval_data": ["heldout.jsonl"],
        "effective_batch_size": 16,
        "learning_rate": 2e-4,
        "strategy": "stacked",
        "phases": {"by": "response_length"},
    }
    values = {"recipe": recipe, "stages": STAGES, "budget_samples": 960, "early_termination": {"mode": "off"}}
    path = write_study(folder, **(values | {"output_dir": str(folder / name)} | more))
    content = json.loads(path.read_text())
    del content["space"]
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content))
    return path


class Killed(BaseException):
    """The process is gone: nothing that is written in Python catches it."""


class Mortal(FakeExecutor):
    """Dies when its last life is used up; a life is a run begun or a look at the runs."""

    def __init__(self, lives: int) -> None:
        super().__init__(curve=curve)
        self.lives = lives
        self.folders: list[Path] = []

    def _spend(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise Killed

    def start(self, run: Run) -> None:
        self._spend()
        self.folders.append(run.folder)
        super().start(run)

    def ended(self) -> dict[str, Any]:
        self._spend()
        return super().ended()


def go(path: Path, executor: FakeExecutor | None = None, observer: StudyObserver | None = None) -> list[dict[str, Any]]:
    chosen = executor or FakeExecutor(curve=curve)
    return run_chain(read_study(path), observer, make_executor=lambda asked: chosen)


def scores(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], str, float]]:
    return [(row["name"], row["settings"], row["state"], row["score"]) for row in rows]


def test_each_stage_starts_from_the_best_so_far(tmp_path: Path) -> None:
    listener = Listener()
    rows = go(write_chain(tmp_path), observer=listener)
    assert [row["name"] for row in rows] == [
        *(f"1-batch-size/00{n}-s42" for n in (1, 2, 3)),
        *(f"2-learning-rate/00{n}-s42" for n in (1, 2, 3)),
        *(f"3-stacked-vs-phased/00{n}-s42" for n in (1, 2)),
    ]
    folder = tmp_path / "study"
    recipes = [json.loads((path / "request.json").read_text()) for path in sorted(folder.glob("*/runs/*"))]
    assert [recipe["learning_rate"] for recipe in recipes[:3]] == [2e-4] * 3
    assert [recipe["effective_batch_size"] for recipe in recipes[3:]] == [16] * 5
    assert [recipe["learning_rate"] for recipe in recipes[6:]] == [1e-3] * 2
    # all of it is in the summary, and every stage is a study of its own
    summary = json.loads((folder / "study.json").read_text())
    assert (summary["state"], summary["runs"]) == ("finished", rows)
    assert [stage["settings"] for stage in summary["stages"]] == [
        {"effective_batch_size": 16},
        {"learning_rate": 1e-3},
        {"strategy": "stacked"},
    ]
    assert summary["best"] == {"effective_batch_size": 16, "learning_rate": 1e-3, "strategy": "stacked"}
    assert len(stage_folders(folder)) == 3
    assert all((stage / "study.json").is_file() for stage in stage_folders(folder))
    assert [text for text in listener.said if "is best" in text] == [one["sentence"] for one in summary["stages"]]
    assert "1-batch-size: effective_batch_size 16 is best, heldout_loss 2.0" in listener.said[0]


def test_names_for_several_keys_are_handed_on_with_all_they_stand_for(tmp_path: Path) -> None:
    kinds = {"slow": {"learning_rate": 1e-4, "weight_decay": 0.1}, "fast": {"learning_rate": 1e-3, "weight_decay": 0.2}}
    stages = {"kind": {"kind": kinds}, "batch": {"effective_batch_size": [8, 16]}}
    go(write_chain(tmp_path, stages=stages))
    for path in (tmp_path / "study/2-batch/runs").iterdir():
        recipe = json.loads((path / "request.json").read_text())
        assert (recipe["learning_rate"], recipe["weight_decay"]) == (1e-3, 0.2)
        assert "kind" not in recipe


def test_a_second_call_redoes_nothing(tmp_path: Path) -> None:
    path = write_chain(tmp_path)
    rows = go(path)
    executor = FakeExecutor(curve=curve)
    assert go(path, executor) == rows
    assert executor.started == []
    assert go(tmp_path / "study/request.json", executor) == rows


def test_killed_anywhere_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    expected = scores(go(write_chain(tmp_path, "calm")))
    path = write_chain(tmp_path, "killed")
    deaths, lives = 0, 3
    while True:
        finished = {one.parent for one in (tmp_path / "killed").glob("*/runs/*/outcome.json")}
        choices = {one: one.read_bytes() for one in (tmp_path / "killed").glob("*/choice.json")}
        executor = Mortal(lives)
        try:
            rows = go(path, executor)
        except Killed:
            rows, deaths, lives = [], deaths + 1, lives + 1
        # what was finished is not begun again, and what was chosen stays
        assert not finished & set(executor.folders)
        assert all(one.read_bytes() == content for one, content in choices.items())
        if rows:
            break
    assert deaths >= 5
    assert scores(rows) == expected


def test_a_choice_stays_whatever_becomes_of_its_stage(tmp_path: Path) -> None:
    path = write_chain(tmp_path)
    executor = FakeExecutor(curve=curve, broken=(1e-3,))  # the best rate fails
    rows = go(path, executor)
    assert {row["settings"].get("learning_rate"): row["state"] for row in rows[3:6]} == {
        1e-4: "finished",
        1e-3: "failed",
        1e-2: "finished",
    }
    choice = json.loads((tmp_path / "study/study.json").read_text())["stages"][1]
    assert choice["settings"] == {"learning_rate": 1e-4}
    assert choice["sentence"].endswith("1 of 3 runs have no score")
    again = FakeExecutor(curve=curve)  # now it would not fail; but stage 3 was made with the other rate
    assert scores(go(path, again)) == scores(rows)
    assert again.started == []


def test_a_stage_without_a_finished_run_ends_the_chain_and_the_next_call_tries_again(tmp_path: Path) -> None:
    path = write_chain(tmp_path)
    with pytest.raises(SengiError, match="1-batch-size: none of its 3 runs finished, so nothing can be chosen"):
        go(path, FakeExecutor(curve=curve, broken=(2e-4,)))
    assert {row["state"] for row in go(path)} == {"finished"}


def test_a_stop_request_ends_the_stage_at_work_and_the_next_call_continues(tmp_path: Path) -> None:
    path = write_chain(tmp_path)
    asked = tmp_path / "study/stop.json"

    class Stop(StudyObserver):
        def rows(self, rows: list[dict[str, Any]]) -> None:
            if len(rows) == 6 and rows[3]["state"] == "running":
                asked.write_text("{}")

    with pytest.raises(StoppedByRequest):
        go(path, observer=Stop())
    assert not asked.exists()
    assert json.loads((tmp_path / "study/study.json").read_text())["state"] == "stopped"
    executor = FakeExecutor(curve=curve)
    assert scores(go(path, executor)) == scores(go(write_chain(tmp_path, "calm")))
    assert executor.started.count("001-s42") <= 2  # of stages 2 and 3


def test_other_stages_in_one_folder_are_refused(tmp_path: Path) -> None:
    go(write_chain(tmp_path))
    turned = dict(reversed(STAGES.items()))
    with pytest.raises(InputError, match="holds a study whose stages come in another order"):
        go(write_chain(tmp_path, stages=turned))
    with pytest.raises(InputError, match=r"holds another study \(stages differ"):
        go(write_chain(tmp_path, stages={"batch-size": STAGES["batch-size"]}))
    with pytest.raises(InputError, match="holds another study"):
        scheduler.run_study(read_study(write_study(tmp_path, output_dir=str(tmp_path / "study"))))


def row(value: int, score: float | None, half: float | None, seed: int = 1) -> dict[str, Any]:
    interval = None if score is None or half is None else [score - half, score + half]
    state = "failed" if score is None else "finished"
    facts = {"name": f"{value:03}-s{seed}", "state": state, "verdict": None}
    return facts | {"settings": {"warmup_steps": value}, "seed": seed, "score": score, "interval": interval}


@pytest.mark.parametrize(
    ("rows", "minimize", "best", "separated", "words"),
    [
        ([row(0, 1.0, 0.1), row(25, 2.0, 0.1)], True, 0, True, "warmup_steps 25, 2.0000 (1.9000 to 2.1000), is told"),
        ([row(0, 1.0, 0.1), row(25, 2.0, 0.1)], False, 25, True, "warmup_steps 25 is best"),
        ([row(0, 1.0, 0.6), row(25, 2.0, 0.6)], True, 0, False, "is not told apart from it: the choice may be chance"),
        ([row(0, 1.0, None), row(25, 2.0, None)], True, 0, False, "may be chance"),
        # seeds further apart than the means say nothing, however narrow the intervals
        (
            [row(0, 1.0, 0.01, 1), row(0, 2.0, 0.01, 2), row(25, 2.0, 0.01, 1), row(25, 2.2, 0.01, 2)],
            True,
            0,
            False,
            "2 seeds",
        ),
        (
            [row(0, 1.0, 0.01, 1), row(0, 1.1, 0.01, 2), row(25, 2.0, 0.01, 1), row(25, 2.2, 0.01, 2)],
            True,
            0,
            True,
            "2 seeds",
        ),
        ([row(0, 1.0, 0.1)], True, 0, False, "there is no other point"),
        ([row(0, 1.0, 0.1), row(25, None, None)], True, 0, False, "1 of 2 runs have no score"),
        ([row(25, 1.0, 0.1), row(0, 1.0, 0.1)], True, 25, False, "warmup_steps 25 is best"),
    ],
)
def test_the_best_is_chosen_and_a_close_call_is_called_one(
    rows: list[dict[str, Any]], minimize: bool, best: int, separated: bool, words: str
) -> None:
    choice = choose("1-warmup", rows, "heldout_loss", minimize)
    assert isinstance(choice, Choice)
    assert (choice.settings, choice.separated) == ({"warmup_steps": best}, separated)
    assert words in choice.sentence


@pytest.mark.parametrize(("state", "verdict"), [("failed", None), ("failed", "stop"), ("stopped", "keep")])
def test_a_point_that_lost_a_seed_is_chosen_only_where_all_did(state: str, verdict: str | None) -> None:
    lost = {**row(25, None, None, 2), "state": state, "verdict": verdict}
    rows = [row(0, 2.0, 0.1, 1), row(0, 2.1, 0.1, 2), row(25, 1.0, 0.1, 1), lost]
    choice = choose("1-warmup", rows, "heldout_loss", minimize=True)
    assert choice.settings == {"warmup_steps": 0}
    assert choice.sentence.endswith(
        f"1 of 4 runs have no score; behind those that lost no run: warmup_steps 25 (025-s2 {state})"
    )
    assert choose("1-warmup", rows[2:], "heldout_loss", minimize=True).settings == {"warmup_steps": 25}
    # a run that the judge stopped was condemned, and not lost
    condemned = {**lost, "state": "stopped", "verdict": "stop"}
    assert choose("1-warmup", [*rows[:3], condemned], "heldout_loss", minimize=True).settings == {"warmup_steps": 25}


def test_status_and_replay_know_the_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"learning_rate": [1e-4, 1e-3]}
    path = write_chain(tmp_path, stages={"rate": rates, "again": rates}, preset="first-three")
    go(path)
    assert sengi(["study", "status", str(path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1-rate: learning_rate 0.001 is best" in text
    assert text.count("002-s42") == 2
    assert "1-rate run settings" in text  # a table for each stage
    assert "best settings so far: learning_rate 0.001" in text
    assert "the paper says a larger batch ends better" in text
    assert sengi(["study", "status", str(tmp_path / "study"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["stages"]) == 2
    replayed: list[Path] = []
    monkeypatch.setattr(replay_study, "replay_study", replayed.append)
    sengi(["study", "replay", str(tmp_path / "study")])  # what is no replay has no JSON: an error, after all of them
    assert replayed == [tmp_path / "study/1-rate", tmp_path / "study/2-again"]


@pytest.mark.slow  # the same with runs that cost nothing: test_killed_anywhere_it_ends_as_if_it_had_not_been
def test_a_real_chain_killed_twice_ends_as_one_that_was_not(tmp_path: Path) -> None:
    crash_harness.write_small_model(tmp_path / "model")
    recipe = {
        "model_name_or_path": str(tmp_path / "model"),
        "data": [str(crash_harness.write_rows(tmp_path / "train.jsonl", 0, 37))],
        "eval_data": [str(crash_harness.write_rows(tmp_path / "heldout.jsonl", 500, 4))],
        "max_tokens_per_device": 64,
        "save_steps": 1,
        "dtype": "float32",
        "effective_batch_size": 4,
        "learning_rate": 1e-2,
    }
    stages = {"batch": {"effective_batch_size": [4, 6]}, "rate": {"learning_rate": [1e-2, 1e-3]}}
    paths = [
        write_chain(tmp_path, name, recipe=recipe, stages=stages, budget_samples=12, executor={"parallel": 2})
        for name in ("unbroken", "killed")
    ]
    program = [str(HERE / "study_program.py"), "2", str(crash_harness.seeded(7)), *map(str, paths)]
    done = warm.run(program, env=crash_harness.environment(tmp_path), timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    unbroken, killed = json.loads(done.stdout.splitlines()[-1])
    assert [session["code"] for session in unbroken] == [0]
    assert killed[-1]["code"] == 0, done.stderr[-3000:]
    assert sum(session["code"] == -9 for session in killed) >= 1
    summaries = [json.loads((tmp_path / name / "study.json").read_text()) for name in ("unbroken", "killed")]
    assert scores(summaries[0]["runs"]) == scores(summaries[1]["runs"])
    assert [one["settings"] for one in summaries[0]["stages"]] == [one["settings"] for one in summaries[1]["stages"]]
    for number, session in enumerate(killed[:-1]):
        later = [name for other in killed[number + 1 :] for name in other["started"]]
        assert not set(session["finished"]) & set(later)
