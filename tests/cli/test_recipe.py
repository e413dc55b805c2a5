"""``sengi recipe``: what init prints is a recipe, the reference page is the schema, show tells origins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sengi.cli.app import run
from sengi.cli.console import out
from sengi.presets.evidence import preset_values
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
def test_show_prints_a_preset_with_the_evidence_of_every_value(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "_width", 400)  # no cell is folded
    assert run(["recipe", "show", name]) == 0
    title, *table = capsys.readouterr().out.strip().splitlines()
    assert "2412.13337" in title
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]
    assert rows == [[one.key, one.text, one.confidence, one.source] for one in preset_values(name)]


@pytest.mark.parametrize("name", preset_names())
def test_init_writes_the_values_of_a_preset_out(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "init", name, "--model", "other", "--data", "a b: c.jsonl"]) == 0
    path = tmp_path / "recipe.yaml"
    path.write_text(capsys.readouterr().out)
    resolved = resolve_recipe(path)
    by_name = resolve_recipe(
        values={"model_name_or_path": "other", "data": ["a b: c.jsonl"], "preset": name, "output_dir": "runs/first"}
    )
    assert resolved.recipe == by_name.recipe.model_copy(update={"preset": None})
    assert f"preset {name}" in by_name.origins.values()


def test_show_without_a_name_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "show"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in preset_names())


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
