"""``sengi recipe``: what init prints is a recipe, the reference page is the schema, show tells origins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sengi.cli.app import run
from sengi.recipe import field_names
from sengi.recipe_sources import preset_names, resolve_recipe

DOCS = Path(__file__).parents[2] / "docs"


def test_init_prints_a_recipe_that_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "init"]) == 0
    path = tmp_path / "recipe.yaml"
    path.write_text(capsys.readouterr().out)
    resolved = resolve_recipe(path)
    assert resolved.recipe.learning_rate == 2e-5
    assert resolved.origins["learning_rate"].startswith("recipe.yaml:")


def test_the_reference_page_is_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "schema", "--markdown"]) == 0
    assert (DOCS / "recipe-reference.md").read_text() == capsys.readouterr().out


def test_json_schema_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "schema", "--json"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert list(schema["properties"]) == field_names()
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("name", preset_names())
def test_show_prints_a_preset_with_evidence_on_every_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "show", name]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert "2412.13337" in lines[0]
    assert all("#" in line for line in lines)
    # and each of its values is accepted
    values = {"model_name_or_path": "m", "data": ["d.jsonl"], "output_dir": "o", "preset": name}
    resolved = resolve_recipe(values=values)
    assert f"preset {name}" in resolved.origins.values()


def test_show_of_a_file_tells_where_each_value_came_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model_name_or_path: m\ndata: [d.jsonl]\noutput_dir: o\nlearning_rate: 3e-6\n")
    assert run(["recipe", "show", str(path), "--set", "seed=7"]) == 0
    text = capsys.readouterr().out
    assert "learning_rate: 3.0e-06  # mine.yaml:4" in text
    assert "seed: 7  # --set" in text
    assert "warmup_steps: 0.0  # default" in text or "warmup_steps: 0  # default" in text


def test_an_unknown_preset_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "show", "tuluu"]) == 2
    assert "did you mean 'tulu'" in capsys.readouterr().err
