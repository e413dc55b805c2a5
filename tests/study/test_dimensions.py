"""Names in a space that stand for several keys: the runs they make, how they are read back, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sengi.errors import RecipeError
from sengi.study.scheduler import run_study
from sengi.study.space import grid, known_points
from sengi.study.study_file import read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, write_study

METHODS = {
    "full": {"use_peft": False, "learning_rate": 2e-5},
    "lora": {"use_peft": True, "learning_rate": 2e-4},
}


def test_a_name_stands_for_several_keys(tmp_path: Path) -> None:
    request = read_study(write_study(tmp_path, space={"method": METHODS, "weight_decay": [0.0, 0.1]}))
    assert grid(request.file) == [
        {"method": method, "weight_decay": decay} for method in ("full", "lora") for decay in (0.0, 0.1)
    ]
    values = request.run_values({"method": "lora", "weight_decay": 0.1}, 1, tmp_path)
    assert (values["use_peft"], values["learning_rate"], values["weight_decay"]) == (True, 2e-4, 0.1)
    assert "method" not in values


def test_presets_are_compared_whole_whatever_the_recipe_says(tmp_path: Path) -> None:
    recipe = {
        "model_name_or_path": "m",
        "data": ["t.jsonl"],
        "eval_data": ["h.jsonl"],
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 2,
    }
    request = read_study(
        write_study(tmp_path, recipe=recipe, space={"preset": ["lab", "tulu"]}, budget_samples=100_000)
    )
    lab, tulu = (request.run_values(point, 1, tmp_path) for point in grid(request.file))
    assert (lab["effective_batch_size"], lab["learning_rate"], lab["lr_scheduler_type"]) == (3840, 2e-5, "constant")
    assert (tulu["effective_batch_size"], tulu["lr_scheduler_type"], tulu["warmup_steps"]) == (128, "linear", 0.03)
    assert (lab["max_steps"], tulu["max_steps"]) == (26, 781)  # both see the budget, not their epochs
    assert (lab["preset"], tulu["preset"]) == ("lab", "tulu")


def test_a_named_preset_may_differ_in_some_keys(tmp_path: Path) -> None:
    space = {"preset": {"lab": {"effective_batch_size": 56}, "tulu": {"effective_batch_size": 2}}}
    request = read_study(write_study(tmp_path, space=space))
    lab, tulu = (request.run_values(point, 1, tmp_path) for point in grid(request.file))
    assert (lab["effective_batch_size"], lab["learning_rate"], lab["preset"]) == (56, 2e-5, "lab")
    assert (tulu["effective_batch_size"], tulu["lr_scheduler_type"], tulu["preset"]) == (2, "linear", "tulu")


def test_points_are_known_from_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # by what the study wrote down: a recipe need not tell which name it was made by
    path = write_study(
        tmp_path, space={"method": {"plain": {"learning_rate": 3e-5}, **METHODS}}, early_termination={"mode": "off"}
    )
    run_study(read_study(path), make_executor=lambda asked: FakeExecutor(room=3))
    space = read_study(path).file.space
    expected = {1: {"method": "plain"}, 2: {"method": "full"}, 3: {"method": "lora"}}
    assert known_points(tmp_path / "study", space) == expected
    # a folder of before that, where the recipe has all
    for folder in (tmp_path / "study/runs").iterdir():
        (folder / "settings.json").unlink()
    old = known_points(tmp_path / "study", {"learning_rate": [3e-5, 2e-5, 2e-4]})
    assert [point["learning_rate"] for point in old.values()] == [3e-5, 2e-5, 2e-4]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"space": {"method": {"a": {"learning_rat": 1}}}}, "space.method.a: a recipe has no key 'learning_rat'; did you"),
    ({"space": {"method": {"a": {"seed": 1}}}}, "space.method.a.seed: the study decides it by seeds"),
    ({"space": {"seed": {"a": {}}}}, "space.seed: the study decides it by seeds"),
    ({"space": {"method": {"a": {}, "b": {}}}}, "space.method: a and b set the same; repeat runs by seeds instead"),
    (
        {"space": {"method": METHODS, "learning_rate": [1e-5]}},
        "space.method.full: sets learning_rate, which the space varies, too",
    ),
    (
        {"space": {"method": {"a": {"learning_rate": -1}}}},
        "the run with method a: learning_rate: must be greater than 0",
    ),
    ({"space": {"preset": ["lab", "tuluu"]}}, "there is no preset 'tuluu'; did you mean 'tulu'?"),
    ({"space": {"method": {}}}, "a recipe has no key 'method'"),
    ({"stages": {"one": {"learning_rate": [1e-5]}}}, "a study has a space or stages, not both"),
    ({"space": None, "stages": ["one"]}, "stages: give each a name and a space"),
    ({"space": None, "stages": {"a/b": {"learning_rate": [1e-5]}}}, "stages: 'a/b' is to name a folder"),
    ({"space": None, "stages": {"one": {}}}, "stages.one: name at least one recipe key"),
    ({"space": None, "stages": {"one": {"seed": [1]}}}, "stages.one.seed: the study decides it by seeds"),
    ({"space": None, "stages": {"one": {"learning_rate": [-1]}}}, "the run with learning_rate -1"),
    ({"preset": "batchsize"}, "there is no study preset 'batchsize'; did you mean 'batch-size'?"),
]


@pytest.mark.parametrize(("more", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    path = write_study(tmp_path, **more)
    values = {key: value for key, value in json.loads(path.read_text()).items() if value is not None}
    path.write_text(json.dumps(values))
    with pytest.raises(RecipeError) as caught:
        read_study(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
