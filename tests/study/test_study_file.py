"""The study file: what it means, and what is said about one that means nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sengi.errors import RecipeError
from sengi.study.scheduler import run_study
from sengi.study.space import grid, runs_of
from sengi.study.study_file import read_study

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, write_study


def test_a_grid_names_its_runs_by_point_and_seed(tmp_path: Path) -> None:
    space = {"learning_rate": [1e-5, 2e-5], "effective_batch_size": [8, 32]}
    request = read_study(write_study(tmp_path, space=space, seeds=[1, 7]))
    points = grid(request.file)
    assert points == [
        {"learning_rate": 1e-5, "effective_batch_size": 8},
        {"learning_rate": 1e-5, "effective_batch_size": 32},
        {"learning_rate": 2e-5, "effective_batch_size": 8},
        {"learning_rate": 2e-5, "effective_batch_size": 32},
    ]
    runs = runs_of(request.file, 2, points[1], tmp_path)
    assert [(run.name, run.seed, run.folder) for run in runs] == [
        ("002-s1", 1, tmp_path / "runs/002-s1"),
        ("002-s7", 7, tmp_path / "runs/002-s7"),
    ]


@pytest.mark.parametrize(("batch", "steps"), [(16, 250), (7, 571), (4000, 1)])
def test_every_run_sees_the_budget_whatever_its_batch(tmp_path: Path, batch: int, steps: int) -> None:
    request = read_study(write_study(tmp_path))
    values = request.run_values({"effective_batch_size": batch}, 5, tmp_path / "run")
    assert (values["max_steps"], values["seed"], values["output_dir"]) == (steps, 5, str(tmp_path / "run"))
    assert values["num_train_epochs"] * 1 >= steps  # the epochs never end it first, even with one step each


def test_rates_are_numbers_as_yaml_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        f"recipe:\n  model_name_or_path: m\n  data: t.jsonl\n  eval_data: h.jsonl\n  effective_batch_size: 8\n"
        f"output_dir: {tmp_path}/out\nspace:\n  learning_rate: [1e-5, 2e-5]\nbudget_samples: 100\nexecutor: local\n"
    )
    assert read_study(path).file.space == {"learning_rate": [1e-5, 2e-5]}


def test_the_recipe_may_be_a_file(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model_name_or_path: m\ndata: t.jsonl\neval_data: h.jsonl\neffective_batch_size: 8\n")
    request = read_study(write_study(tmp_path, recipe=str(recipe)))
    assert request.base["effective_batch_size"] == 8
    # what is kept in the study folder needs that file no more
    assert json.loads(request.to_json())["recipe"] == request.base


def test_the_judge_looks_at_a_twentieth_of_the_budget_by_default(tmp_path: Path) -> None:
    settings = read_study(write_study(tmp_path)).file.judge_settings()
    assert settings is not None
    assert (settings.mode, list(settings.checks())) == ("advise", [200, 400, 600, 800, 1000, 1200])
    assert read_study(write_study(tmp_path, early_termination={"mode": "off"})).file.judge_settings() is None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"space": {}}, "space: name at least one recipe key"),
    ({"space": {"learning_rate": []}}, "space.learning_rate: the list is empty"),
    ({"space": {"learning_rat": [1e-5]}}, "no key 'learning_rat'; did you mean 'learning_rate'?"),
    ({"space": {"seed": [1, 2]}}, "space.seed: the study decides it by seeds"),
    ({"space": {"learning_rate": 1e-5}}, "space.learning_rate: is 1e-05; give a list, or a range"),
    ({"space": {"learning_rate": {}}}, "space.learning_rate: is {}; give a list, or a range"),
    ({"stages": {"a": {"learning_rate": {}}}, "space": {}}, "stages.a.learning_rate: is {}; give a list, or a range"),
    ({"space": {"learning_rate": [1e-5, 1e-5]}}, "space.learning_rate: a value is listed twice"),
    ({"space": {"learning_rate": [1e-5, -1]}}, "the run with learning_rate -1: learning_rate: must be greater than 0"),
    ({"space": {"learning_rate": {"low": 1e-3, "high": 1e-5}}, "num_trials": 3}, "low must be below high"),
    ({"space": {"learning_rate": {"low": 0, "high": 1e-5, "log": True}}, "num_trials": 3}, "begins above 0"),
    ({"space": {"learning_rate": {"lo": 1e-5, "high": 1e-3}}, "num_trials": 3}, "no key 'space.learning_rate.lo'"),
    ({"space": {"learning_rate": {"low": 1e-5, "high": 1e-3}}}, "add num_trials"),
    ({"num_trials": 3}, "num_trials is for ranges"),
    ({"seeds": [1, 1]}, "a seed is listed twice"),
    ({"budget_samples": 10}, "budget_samples is 10, but effective_batch_size is 16"),
    ({"budget_sample": 10}, "a study has no key 'budget_sample'; did you mean 'budget_samples'?"),
    ({"executor": {"parallell": 2}}, "no key 'executor.parallell'; did you mean 'parallel'?"),
    ({"executor": "cluster"}, "executor.kind: must be 'local' or 'ray', got 'cluster'"),
    (
        {"early_termination": {"mode": "kill"}},
        "early_termination.mode: must be 'off', 'advise' or 'terminate', got 'kill'",
    ),
    ({"early_termination": {"audit": 0.2}}, "audit is 0.2, but mode advise stops no run that could go on instead"),
    ({"early_termination": {"check_samples": 200}, "budget_samples": 400}, "checks every 200 samples, but its window"),
    ({"space": {"effective_batch_size": {"low": 8, "high": 8192}}, "num_trials": 3}, "effective_batch_size is 8,192"),
    (
        {
            "space": {"learning_rate": {"low": 1e-5, "high": 1e-3}, "lr_scheduler_type": ["constant", "cosin"]},
            "num_trials": 3,
        },
        "cosin",
    ),
    (
        {"space": {"effective_batch_size": {"low": 8, "high": 64.5}}, "num_trials": 3},
        "space: effective_batch_size runs from 8 to 64.5, but it takes whole numbers only; give whole numbers at both",
    ),
    (
        {"space": {"warmup_steps": {"low": 0.01, "high": 20}}, "num_trials": 3},
        "warmup_steps runs from 0.01 to 20, but above 1 it takes whole numbers only",
    ),
    (
        {"space": {"use_peft": {"low": 0.0, "high": 1.5}}, "num_trials": 3},
        "use_peft runs from 0.0 to 1.5, but it takes",
    ),
    ({"stages": {"a": {"lora_r": {"low": 4.5, "high": 9}}}, "space": {}, "num_trials": 3}, "stages: lora_r runs from"),
    ({"storage": "mysql://x"}, "write postgresql://USER@HOST/DATABASE"),
    ({"storage": "postgresql://me:secret@host/db"}, "storage holds a password"),
    ({"storage": "postgresql://host/db?user=me&password=secret"}, "storage holds a password"),
    ({"storage": "postgresql://me@host/db?sslmode=require&pass%77ord=secret"}, "storage holds a password"),
    ({"storage": "postgresql:///db?PASSWORD=secret"}, "storage holds a password"),
    ({"recipe": {"model_name_or_path": "m", "data": ["t.jsonl"]}}, "the recipe has no eval_data"),
    ({"objective": "mmlu/acc"}, "neither eval_questions nor eval_tasks"),
    ({"objective": "heldout"}, "objective is 'heldout', which names no metric of a task, so that nothing says which"),
    ({"objective": "wikitext/"}, "which names no metric of a task"),
    ({"objective": "/acc"}, "which names no metric of a task"),
    ({"recipe": "nowhere.yaml"}, "nowhere.yaml: no such recipe file"),
]


@pytest.mark.parametrize(("more", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_a_bad_study_is_refused_in_one_line_that_says_why(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_study(write_study(tmp_path, **more))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("key", "ends", "kind"),
    [
        ("effective_batch_size", (8.0, 64.0), int),
        ("warmup_steps", (0.0, 20.0), int),
        ("warmup_steps", (0.0, 0.1), float),
        ("weight_decay", (0.0, 0.5), float),
    ],
)
def test_a_range_draws_the_numbers_that_its_key_takes(
    tmp_path: Path, key: str, ends: tuple[float, float], kind: type
) -> None:
    space = {"learning_rate": [1e-3], key: {"low": ends[0], "high": ends[1]}}
    rows = run_study(
        read_study(write_study(tmp_path, space=space, num_trials=4, early_termination={"mode": "off"})),
        make_executor=lambda asked: FakeExecutor(),
    )
    assert {type(row["settings"][key]) for row in rows} == {kind}
    assert {row["state"] for row in rows} == {"finished"}


def test_an_objective_without_a_metric_is_told_what_can_be_asked(tmp_path: Path) -> None:
    # a benchmark's metric may be better when lower: half a name would be optimised the wrong way
    recipe = {
        "model_name_or_path": "m",
        "data": ["t.jsonl"],
        "eval_data": ["h.jsonl"],
        "eval_questions": ["own.jsonl"],
        "eval_tasks": ["wikitext", "heldout:other.jsonl", "questions:own.jsonl"],
    }
    with pytest.raises(RecipeError) as caught:
        read_study(write_study(tmp_path, recipe=recipe, objective="wikitext"))
    offers = "heldout_loss, own/accuracy, own/exact_match, wikitext/METRIC, heldout_other/loss"
    assert str(caught.value).endswith(f"this recipe has {offers}")


def test_a_missing_key_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    values = json.loads(path.read_text())
    del values["budget_samples"]
    path.write_text(json.dumps(values))
    with pytest.raises(RecipeError, match="budget_samples: missing"):
        read_study(path)
    with pytest.raises(RecipeError, match=r"studi\.yaml: no such study file; did you mean 'study\.yaml'\?"):
        read_study(tmp_path / "studi.yaml")


@pytest.mark.parametrize(
    ("objective", "lower"),
    [
        ("heldout_loss", True),
        ("heldout/loss", True),
        ("glossary/accuracy", False),
        ("wikitext/bits_per_byte", True),
        ("lambada/perplexity", True),
        ("gsm8k/exact_match", False),
    ],
)
def test_which_way_is_better_is_the_metrics_to_say(tmp_path: Path, objective: str, lower: bool) -> None:
    recipe = {"model_name_or_path": "m", "data": ["t.jsonl"], "eval_data": ["h.jsonl"], "eval_tasks": ["gsm8k"]}
    assert read_study(write_study(tmp_path, recipe=recipe, objective=objective)).file.minimize is lower
