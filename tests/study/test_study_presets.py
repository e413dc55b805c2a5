"""Study presets: the grids of the issue, scaled or not, made into study files that are studies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sengi.cli.app import run
from sengi.errors import RecipeError
from sengi.presets.evidence import CONFIDENCES
from sengi.presets.scale import PAPER_SAMPLES
from sengi.recipe_sources import resolve_recipe
from sengi.study import preset_file as module
from sengi.study.preset_file import EPOCHS, PresetFile, preset_file
from sengi.study.space import grid
from sengi.study.study_file import StudyRequest, read_study
from sengi.study.study_presets import PRESETS, check_preset, family
from sengi.train.observer import Observer

sys.path.append(str(Path(__file__).parents[1] / "train"))
import crash_harness

PAGE = Path(__file__).parents[2] / "docs" / "presets.md"
RECIPE = {"data": ["train.jsonl"], "eval_data": ["heldout.jsonl"], "output_dir": "runs/mine"}


class Made:
    """A study file, as text and as a study."""

    def __init__(self, made: PresetFile, folder: Path) -> None:
        self.made = made
        path = folder / "study.yaml"
        path.write_text(made.text)
        self.request: StudyRequest = read_study(path)
        self.file = self.request.file

    def points(self) -> list[dict[str, Any]]:
        return grid(self.file)

    def recipes(self) -> list[dict[str, Any]]:
        return [self.request.run_values(point, 1, Path("run")) for point in self.points()]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Study files without a model and without data: what counts them is told the number."""

    def make(
        name: str,
        samples: int = PAPER_SAMPLES,
        *,
        model: str = "m",
        scale: bool = False,
        phases_of_data: tuple[str, ...] = ("",),
        **recipe: Any,
    ) -> Made:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        monkeypatch.setattr(module, "resolve_model", lambda model: folder)
        monkeypatch.setattr(module, "epoch_samples", lambda recipe, observer: samples)
        monkeypatch.setattr(module, "phase_names", lambda recipe, observer: list(phases_of_data))
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({"model_name_or_path": model, **RECIPE, **recipe}))
        return Made(preset_file(name, path, (), scale, Observer()), tmp_path)

    return make


GRIDS: list[tuple[str, str, list[Any]]] = [
    ("batch-size", "effective_batch_size", [128, 3840, 7680]),
    ("learning-rate", "learning_rate", [1e-6, 5e-6, 2e-5, 8e-5]),
    ("warmup", "warmup_steps", [0, 25, 100]),
    ("schedule", "lr_scheduler_type", ["constant", "cosine", "linear"]),
    ("stacked-vs-phased", "strategy", ["stacked", "phased"]),
    ("lab-vs-tulu", "preset", ["lab", "tulu"]),
]


@pytest.mark.parametrize(("name", "key", "values"), GRIDS)
def test_a_preset_is_the_grid_of_its_question(make: Any, name: str, key: str, values: list[Any]) -> None:
    study = make(name)
    assert study.points() == [{key: value} for value in values]
    assert study.file.budget_samples == EPOCHS * PAPER_SAMPLES
    assert (study.file.preset, study.file.objective, study.file.early_termination.mode) == (
        name,
        "heldout_loss",
        "advise",
    )
    assert len(study.file.seeds) >= 2
    assert study.file.output_dir == f"runs/{name}"  # beside the recipe's own run
    assert PRESETS[name].question in study.made.text


@pytest.mark.parametrize(
    ("model", "kin", "rates"),
    [
        ("mistralai/Mistral-7B-v0.1", "mistral", [1e-6, 5e-6, 2e-5]),
        ("ibm-granite/granite-7b-base", "granite", [5e-6, 2e-5, 4e-5, 8e-5]),
        ("meta-llama/Llama-3.2-3B", "", [1e-6, 5e-6, 2e-5, 8e-5]),
    ],
)
def test_rates_and_configuration_are_those_of_the_family(make: Any, model: str, kin: str, rates: list[float]) -> None:
    assert family(model, "llama") == kin
    study = make("learning-rate", model=model)
    assert [point["learning_rate"] for point in study.points()] == rates
    lora = make("learning-rate", model=model, use_peft=True)
    assert [point["learning_rate"] for point in lora.points()] == [pytest.approx(10 * rate) for rate in rates]
    configurations = [point["preset"] for point in make("lab-vs-tulu", model=model).points()]
    assert configurations == [f"lab-{kin}" if kin else "lab", "tulu"]


def test_a_family_is_also_known_by_its_config() -> None:
    assert family("/models/base", "mistral") == "mistral"
    assert family("/models/base", "qwen3") == ""
    assert family("/granite-tests/qwen", "qwen3") == ""  # a folder above the model says nothing


def test_full_and_lora_have_their_own_rates_and_the_recipe_s_do_not_shine_through(make: Any) -> None:
    study = make("full-vs-lora", learning_rate=1e-3, use_peft=True, effective_batch_size=64)
    recipes = study.recipes()
    full = [recipe["learning_rate"] for recipe in recipes if not recipe["use_peft"]]
    lora = [recipe["learning_rate"] for recipe in recipes if recipe["use_peft"]]
    assert full == [1e-6, 5e-6, 2e-5, 8e-5]
    assert lora == [1e-5, 5e-5, 2e-4, 8e-4]
    assert study.file.early_termination.mode == "advise"
    assert study.points()[0] == {"method": "full-1e-06"}


def test_stacked_and_phased_differ_in_nothing_else(make: Any) -> None:
    stacked, phased = make("stacked-vs-phased").recipes()
    assert (stacked.pop("strategy"), phased.pop("strategy")) == ("stacked", "phased")
    assert stacked == phased
    assert phased["phases"] == {"by": "response_length", "at": 0.5, "replay": 0.01}
    # those of the recipe come first of all
    own = make("stacked-vs-phased", strategy="phased", phases={"by": "difficulty", "at": 0.3})
    assert own.recipes()[1]["phases"] == {"by": "difficulty", "at": 0.3}


@pytest.mark.parametrize("preset", ["stacked-vs-phased", "first-three"])
@pytest.mark.parametrize(
    ("names", "by"),
    [
        (("a", "b"), "phase"),
        (("a",), "response_length"),  # one phase is stacked training
        (("a", "b", ""), "response_length"),  # samples without a phase would end the run
    ],
)
def test_phases_that_the_data_names_are_taken(make: Any, preset: str, names: tuple[str, ...], by: str) -> None:
    assert make(preset, phases_of_data=names).request.base["phases"]["by"] == by


def test_phases_may_be_named_by_entries_or_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENGI_CACHE", str(tmp_path / "cache"))
    crash_harness.write_small_model(tmp_path / "model")
    rows = [json.loads(line) for line in crash_harness.write_rows(tmp_path / "plain.jsonl", 0, 8).open()]
    (tmp_path / "named.jsonl").write_text(
        "".join(json.dumps({**r, "phase": "ab"[n % 2]}) + "\n" for n, r in enumerate(rows))
    )

    def names(*entries: Any) -> list[str]:
        values = {"model_name_or_path": str(tmp_path / "model"), "data": list(entries), "output_dir": "run"}
        return sorted(module.phase_names(resolve_recipe(values=values).recipe, Observer()))

    plain, named = str(tmp_path / "plain.jsonl"), str(tmp_path / "named.jsonl")
    assert names(named) == ["a", "b"]
    assert names(named, {"path": plain, "phase": "c"}) == ["a", "b", "c"]
    assert names(plain) == [""]


def test_first_three_asks_for_batch_then_rate_then_strategy(make: Any) -> None:
    study = make("first-three")
    assert {name: list(space) for name, space in study.file.stages.items()} == {
        "batch-size": ["effective_batch_size"],
        "learning-rate": ["learning_rate"],
        "stacked-vs-phased": ["strategy"],
    }
    assert not study.file.space


def test_scaled_sizes_keep_the_steps_of_an_epoch(make: Any) -> None:
    study = make("batch-size", 12_000, scale=True)
    assert [point["effective_batch_size"] for point in study.points()] == [2, 56, 112]
    assert study.file.budget_samples == EPOCHS * 12_000
    # what the recipe leaves to the paper is scaled, too, and all of it is on record
    assert {(recipe["save_samples"], recipe["eval_samples"]) for recipe in study.recipes()} == {(3634, 3634)}
    rows = {(entry.key, entry.paper): entry.here for entry in study.file.scale}
    assert rows == {
        ("effective_batch_size", 128): 2,
        ("effective_batch_size", 3840): 56,
        ("effective_batch_size", 7680): 112,
        ("save_samples", 250_000): 3634,
        ("eval_samples", 250_000): 3634,
    }
    assert json.loads(study.request.to_json())["scale"] == [entry.model_dump() for entry in study.file.scale]
    assert "effective_batch_size 56 = 3,840 x 12,000 / 825,487 samples" in study.made.text


def test_the_recipe_s_own_sizes_stay_and_that_is_said(make: Any) -> None:
    study = make("warmup", 12_000, scale=True, effective_batch_size=64, save_steps=5)
    recipe = study.recipes()[0]
    assert (recipe["effective_batch_size"], recipe["eval_samples"]) == (64, 3634)
    assert "save_samples" not in recipe  # save_steps decides
    assert study.made.kept == ["effective_batch_size 64 is the recipe's own and stays"]
    # without one of its own, the paper's is cut to the data
    assert make("warmup", 12_000, scale=True).recipes()[0]["effective_batch_size"] == 56
    assert make("warmup", 12_000, scale=True, preset="lab-8k").recipes()[0]["effective_batch_size"] == 112


def test_scaled_configurations_keep_their_names(make: Any) -> None:
    study = make("lab-vs-tulu", 12_000, scale=True)
    lab, tulu = study.recipes()
    assert study.points() == [{"preset": "lab"}, {"preset": "tulu"}]
    assert (lab["effective_batch_size"], lab["save_samples"], lab["lr_scheduler_type"]) == (56, 3634, "constant")
    assert (tulu["effective_batch_size"], tulu["save_samples"], tulu["lr_scheduler_type"]) == (2, 3634, "linear")
    # what the configurations set is theirs, whatever the recipe says; nothing is said to stay that does not
    own = make("lab-vs-tulu", 12_000, scale=True, effective_batch_size=64, save_samples=50, eval_samples=70)
    assert [recipe["save_samples"] for recipe in own.recipes()] == [3634, 3634]
    assert own.made.kept == ["eval_samples 70 is the recipe's own and stays"]


def test_scaling_at_the_paper_s_size_changes_nothing(make: Any) -> None:
    plain, scaled = (make("batch-size", scale=scale).recipes() for scale in (False, True))
    sizes = ("effective_batch_size", "max_steps", "save_samples", "eval_samples")
    expected = [{"save_samples": 250_000, "eval_samples": 250_000, **one} for one in plain]  # the defaults
    assert [[one[key] for key in sizes] for one in expected] == [[one[key] for key in sizes] for one in scaled]


@pytest.mark.parametrize(
    ("name", "samples", "more", "words"),
    [
        ("batchsize", 1000, {}, "there is no study preset 'batchsize'; did you mean 'batch-size'?"),
        ("batch-size", 300, {"scale": True}, "300 samples are too few to keep the paper's sizes"),
        ("lab-vs-tulu", 100, {"scale": True}, "100 samples are too few to keep the paper's sizes"),
        ("batch-size", 1000, {}, "7,680 samples a step are more than the 6,000 of 6 epochs; cut the paper's sizes"),
        ("lab-vs-tulu", 1000, {"use_peft": True, "scale": True}, "compares recipes of full fine-tuning"),
        ("warmup", 1000, {"eval_data": [], "scale": True}, "the recipe has no eval_data; add held-out conversations"),
        ("warmup", 1000, {"learning_rat": 1, "scale": True}, "no key 'learning_rat'"),
    ],
)
def test_what_cannot_be_asked_is_refused(make: Any, name: str, samples: int, more: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make(name, samples, **more)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_preset_has_a_question_an_answer_and_its_evidence() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        assert check_preset(name) is preset
        assert preset.question.endswith((".", "?"))
        assert preset.confidence in CONFIDENCES
        row = f"| `{name}` | {preset.question} | {preset.answer} | {preset.source} | {preset.confidence} |"
        assert row in text, f"docs/presets.md: {name}"


def test_the_commands_count_the_data_and_print_files_that_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SENGI_CACHE", str(tmp_path / "cache"))
    crash_harness.write_small_model(tmp_path / "model")
    train = crash_harness.write_rows(tmp_path / "train.jsonl", 0, 400)
    command = ["recipe", "init", "lab", "--model", str(tmp_path / "model"), "--data", str(train), "--scale"]
    assert run(command) == 0
    printed = capsys.readouterr()
    assert "825,487 samples an epoch -> 400 here" in printed.err
    recipe = tmp_path / "recipe.yaml"
    heldout = crash_harness.write_rows(tmp_path / "heldout.jsonl", 500, 4)
    recipe.write_text(printed.out + f"eval_data: {heldout}\n")
    assert "effective_batch_size: 2         # 3,840 x 400 / 825,487 samples; high: appendix" in printed.out
    assert "eval_samples: 121" in printed.out

    assert run(["study", "init", "batch-size", str(recipe), "--scale", "--set", "weight_decay=0.1"]) == 0
    printed = capsys.readouterr()
    assert "note: effective_batch_size 1: rounded from 0.06: 400.0 times an epoch, not 6,449.1" in printed.err
    (tmp_path / "study.yaml").write_text(printed.out)
    study = read_study(tmp_path / "study.yaml")
    assert study.file.space == {"effective_batch_size": [1, 2, 4]}
    assert study.file.budget_samples == 400 * EPOCHS
    assert study.base["weight_decay"] == 0.1

    assert run(["study", "init"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert all(name[:10] in listed for name in PRESETS)
    assert run(["study", "init", "batchsize", str(recipe)]) == 2
    assert "did you mean 'batch-size'?" in capsys.readouterr().err
    assert run(["recipe", "init", "--scale"]) == 2
    assert "name one, as in 'sengi recipe init lab --scale'" in capsys.readouterr().err
