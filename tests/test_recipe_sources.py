from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sengi.errors import RecipeError
from sengi.recipe import Recipe, field_names
from sengi.recipe_sources import MAX_RECIPE_BYTES, preset_names, preset_text, read_preset, resolve_recipe

MINIMUM = "model_name_or_path: m\ndata: [{path: train.jsonl}]\noutput_dir: out\n"
VALUES: dict[str, Any] = {"model_name_or_path": "m", "data": [{"path": "train.jsonl"}], "output_dir": "out"}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(MINIMUM + text, encoding="utf-8")
    return path


def error_of(*args: Any, **kwargs: Any) -> str:
    """The message of a refusal: one line, whatever was wrong."""
    with pytest.raises(RecipeError) as caught:
        resolve_recipe(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("1e-6", 1e-6), ("2E-5", 2e-5), ("1.", 1.0), (".5", 0.5), ("1.5e-3", 1.5e-3), ("1e+0", 1.0)],
)
def test_numbers_are_read_as_json_reads_them(tmp_path: Path, text: str, value: float) -> None:
    # PyYAML alone reads 2e-5 as a string, YAML 1.1 wants 2.0e-5
    assert resolve_recipe(write(tmp_path, f"learning_rate: {text}")).recipe.learning_rate == value
    assert resolve_recipe(values=VALUES, overrides=[f"learning_rate={text}"]).recipe.learning_rate == value


def test_keys_of_lora(tmp_path: Path) -> None:
    found = resolve_recipe(write(tmp_path, "use_peft: true\nlora_target_modules: q_proj\n"))
    assert found.recipe.lora_target_modules == ["q_proj"]
    assert "learning_rate: 0.0002  # default" in found.to_yaml()
    assert "learning_rate" not in found.origins
    # a preset's rate was given, if not by the user: it stays, and the plan says what to think of it
    assert resolve_recipe(write(tmp_path, "use_peft: true\npreset: lab\n")).recipe.learning_rate == 2e-5
    message = error_of(write(tmp_path, "use_peft: true\nlora_dropout: 0.05\n"))
    assert "recipe.yaml:5: there is no key 'lora_dropout': dropout noise would depend on how samples" in message


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n"])
def test_words_are_words(tmp_path: Path, word: str) -> None:
    # YAML 1.1 reads them as booleans: a folder called "on" would be True
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMUM.replace("output_dir: out", f"output_dir: {word}"))
    assert resolve_recipe(path).recipe.output_dir == word


def test_precedence_and_origins(tmp_path: Path) -> None:
    path = write(tmp_path, "preset: tulu\nlearning_rate: 1e-5\nseed: 1\nmax_length: 100\n")
    found = resolve_recipe(path, ["seed=2", "max_length=200"], {"max_length": 300})
    recipe, origins = found.recipe, found.origins
    # preset < file < --set < Python
    assert (recipe.lr_scheduler_type, origins["lr_scheduler_type"]) == ("linear", "preset tulu")
    assert (recipe.learning_rate, origins["learning_rate"]) == (1e-5, "recipe.yaml:5")
    assert (recipe.seed, origins["seed"]) == (2, "--set")
    assert (recipe.max_length, origins["max_length"]) == (300, "Python")
    # what nobody gave is a default and has no origin
    assert "overlong" not in origins
    # --set reaches inside a preset's value, and the rest of it stays
    phased = resolve_recipe(write(tmp_path, "preset: length-phased\n"), ["phases.replay=0.05"]).recipe.phases
    assert phased is not None
    assert (phased.by, phased.at, phased.replay) == ("response_length", 0.5, 0.05)
    # a later --set wins, and --set chooses the preset, too
    assert resolve_recipe(path, ["seed=2", "seed=3"]).recipe.seed == 3
    other = resolve_recipe(path, ["preset=lab"])
    assert (other.recipe.lr_scheduler_type, other.origins["preset"]) == ("constant", "--set")


def test_arguments_are_not_changed() -> None:
    values = copy.deepcopy(VALUES)
    resolve_recipe(values=values, overrides=["seed=1"])
    assert values == VALUES


def test_overrides_reach_inside() -> None:
    path_values = {**VALUES, "data": [{"path": "a"}, {"path": "b"}]}
    text = yaml.safe_dump(path_values)
    found = resolve_recipe_text(text, ["data.1.weight=2.5", "data.0.path=c"])
    assert [(entry.path, entry.weight) for entry in found.data] == [("c", 1.0), ("b", 2.5)]


def resolve_recipe_text(text: str, overrides: list[str]) -> Recipe:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(text)
        return resolve_recipe(path, overrides).recipe


@pytest.mark.parametrize("data", ["train.jsonl", ["train.jsonl"], [{"path": "train.jsonl"}]])
def test_a_path_is_a_data_entry(data: Any) -> None:
    (entry,) = resolve_recipe(values={**VALUES, "data": data}).recipe.data
    assert (entry.path, entry.weight, entry.phase) == ("train.jsonl", 1.0, "")


def test_a_word_is_a_list_of_one() -> None:
    recipe = resolve_recipe(values={**VALUES, "report_to": "wandb", "eval_questions": "q.jsonl"}).recipe
    assert (recipe.report_to, recipe.eval_questions) == (["wandb"], ["q.jsonl"])
    assert resolve_recipe(values={**VALUES, "report_to": "none"}).recipe.report_to == []


# What users get wrong, and the words they must see


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1e-5", ["recipe.yaml:4", "no key 'learning_rat'", "did you mean 'learning_rate'?"]),
        ("\n\nbatch_size: 5", ["recipe.yaml:6", "no key 'batch_size'", "effective_batch_size"]),
        ("xyzzy: 5", ["recipe.yaml:4", "no key 'xyzzy'", "sengi recipe schema"]),
        ("learning_rate: -1", ["learning_rate", "greater than 0", "got -1", "recipe.yaml:4", "default is 2e-05"]),
        ("learning_rate: 2e-5\nlearning_rate: 1e-5", ["recipe.yaml:5", "learning_rate is given twice"]),
        ("effective_batch_size: 1.5", ["effective_batch_size", "integer", "got 1.5", "recipe.yaml:4"]),
        ("lr_scheduler_type: cosin", ["lr_scheduler_type", "'cosine'", "got 'cosin'", "recipe.yaml:4"]),
        ("max_tokens_per_device: 4", ["max_tokens_per_device is 4", "at least 8", "raise it"]),
        ("warmup_steps: 2.5", ["warmup_steps is 2.5", "whole steps, or a share below 1"]),
        ("seed: *x", ["recipe.yaml:4", "aliases (*name) are not allowed"]),
        ("seed: [1", ["recipe.yaml", "not valid YAML", "mend that line"]),
        ("seed: 1\n\tx: 2", ["recipe.yaml:5", "not valid YAML"]),
        ("preset: lob", ["no preset 'lob'", "did you mean 'lab'?"]),
        ("seed: !!python/object/apply:os.system ['true']", ["recipe.yaml:4", "not valid YAML", "tag"]),
        ("seed: !!python/name:os.system", ["recipe.yaml:4", "not valid YAML", "tag"]),
        ("? [a, b]\n: 1", ["recipe.yaml:4", "not valid YAML"]),
        ("---\nseed: 2", ["recipe.yaml:4", "not valid YAML"]),
        ("dtype: float16", ["dtype", "'bfloat16'", "got 'float16'"]),
        ("max_length: true", ["max_length", "got True"]),
        ("warmup_steps: inf", ["warmup_steps", "got 'inf'"]),
        ("eval_data: [{path: a, wieght: 2}]", ["eval_data entry 1", "no key 'wieght'", "'weight'", "recipe.yaml:4"]),
        ("eval_data: 5", ["eval_data", "list", "recipe.yaml:4"]),
        ("eval_data:\n- path: a\n  path: b", ["recipe.yaml:6", "path is given twice"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_cure(tmp_path: Path, text: str, words: list[str]) -> None:
    message = error_of(write(tmp_path, text))
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("missing", ["model_name_or_path", "data", "output_dir"])
def test_a_missing_key_says_how_to_give_it(missing: str) -> None:
    message = error_of(values={key: value for key, value in VALUES.items() if key != missing})
    assert message == f"{missing}: missing; add '{missing}: ...' to the recipe or --set {missing}=..."


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learning_rate", ["--set learning_rate: write --set key=value"]),
        ("=5", ["write --set key=value"]),
        ("learning_rat=5", ["--set: there is no key 'learning_rat'", "learning_rate"]),
        ("seed=[", ["--set seed=[: the value is not valid YAML"]),
        ("seed=-1", ["seed", "got -1 (--set)", "the authors' default"]),
        ("data.3.path=x", ["points at nothing in this recipe"]),
        ("data.x.path=x", ["points at nothing in this recipe"]),
        ("seed.x=1", ["points at nothing in this recipe"]),
        ("dta.0.path=1", ["no key 'dta'", "did you mean 'data'?"]),
        ("data=5", ["data", "list", "--set"]),
    ],
)
def test_a_wrong_override_is_named(override: str, words: list[str]) -> None:
    message = (
        error_of(values={k: v for k, v in VALUES.items() if k != "data"}, overrides=[override])
        if (override == "data=5")
        else error_of(values=VALUES, overrides=[override])
    )
    for word in words:
        assert word in message, message


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(MINIMUM)
    assert "did you mean 'recipe.yaml'?" in error_of(tmp_path / "recipes.yaml")
    assert "no such recipe file" in error_of(tmp_path / "nowhere" / "recipe.yaml")
    assert "no such recipe file" in error_of(tmp_path)
    for content, words in [
        (b"", "a recipe is a list of 'key: value' lines"),
        (b"- a\n- b\n", "a recipe is a list of 'key: value' lines"),
        (b"just words", "a recipe is a list of 'key: value' lines"),
        (MINIMUM.encode() + b"seed: \xff", "not UTF-8 at byte"),
        (MINIMUM.encode() + b"seed: \x00", "not valid YAML"),
        (b"# " + b"x" * MAX_RECIPE_BYTES, "is no recipe (at most 1,048,576)"),
    ]:
        (tmp_path / "bad.yaml").write_bytes(content)
        assert words in error_of(tmp_path / "bad.yaml")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMUM.encode())
    assert resolve_recipe(tmp_path / "recipe.yaml").recipe.output_dir == "out"


def test_bombs_are_refused_at_once(tmp_path: Path) -> None:
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    started = time.perf_counter()
    assert "aliases (*name) are not allowed" in error_of(write(tmp_path, laughs))
    assert "not valid YAML" in error_of(write(tmp_path, "seed: " + "[" * 50_000))
    assert "not valid YAML" in error_of(write(tmp_path, "seed: " + "9" * 5_000))
    assert time.perf_counter() - started < 20


def test_presets_are_named() -> None:  # what is in them: tests/presets/test_evidence.py
    assert {"lab", "lab-8k", "tulu"} <= set(preset_names())
    assert read_preset("lab")["effective_batch_size"] == 3840
    assert "2412.13337" in preset_text("lab").splitlines()[0]
    message = error_of(values={**VALUES, "preset": "../secrets"})
    assert "there is no preset '../secrets'" in message


# The resolved recipe is written into every run folder and read back

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@settings(max_examples=200)
@given(
    st.fixed_dictionaries(
        {
            "model_name_or_path": WORDS,
            "output_dir": WORDS,
            "data": st.lists(
                st.fixed_dictionaries({"path": WORDS, "phase": WORDS, "weight": st.floats(0.001, 1000)}),
                min_size=1,
                max_size=3,
            ),
        },
        optional={
            "learning_rate": st.floats(1e-12, 1, exclude_min=True),
            "adam_epsilon": st.floats(1e-20, 1),
            "effective_batch_size": st.integers(1, 10**6),
            "max_tokens_per_device": st.just("auto") | st.integers(8, 10**6),
            "save_samples": st.none() | st.integers(1, 10**9),
            "eval_questions": st.lists(WORDS, max_size=2),
            "warmup_steps": st.floats(0, 0.99) | st.integers(1, 100),
        },
    )
)
@example({**VALUES, "output_dir": "1e3"})  # a float for one YAML, a word for the other
@example({**VALUES, "output_dir": "on"})
@example({**VALUES, "output_dir": "2024-01-01"})
@example({**VALUES, "output_dir": "a: b # c"})
@example({**VALUES, "output_dir": "0x10"})
def test_to_yaml_reads_back_as_the_same(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    resolved = resolve_recipe(values=values)
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(resolved.to_yaml(), encoding="utf-8")
    again = resolve_recipe(path)
    assert again.recipe == resolved.recipe
    assert again.recipe.model_dump() == resolved.recipe.model_dump()


def test_to_yaml_shows_every_key_with_its_origin(tmp_path: Path) -> None:
    text = resolve_recipe(write(tmp_path, "preset: lab\nseed: 1\n"), ["max_length=64"]).to_yaml()
    assert [key for key in yaml.safe_load(text)] == field_names()
    lines = {line.partition(":")[0]: line for line in text.splitlines() if not line.startswith((" ", "-", "#"))}
    assert lines["seed"].endswith("# recipe.yaml:5")
    assert lines["max_length"].endswith("# --set")
    assert lines["num_train_epochs"].endswith("# preset lab")
    assert lines["overlong"].endswith("# default")
