"""Advice as a pure function: what the evidence says, what it would change, and how sure it is."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.memory_run import small_recipe

from sengi.model.cost import ModelCost
from sengi.recipe import REGRET, Recipe
from sengi.recipe_sources import resolve_recipe
from sengi.statistics.gradient_noise import NoiseScale
from sengi.train.advice import FEWEST_STEPS, STEPS, Advice, advise, explain_probe, less_sure
from sengi.train.plan_warnings import of_lora

BASE = {"model_name_or_path": "ibm-granite/granite-7b-base", "eval_tasks": ["mmlu"]}


def plan_of(
    recipe: Recipe, samples: int, parameters: float = 7e9, names: tuple[str, ...] = ("stacked",)
) -> dict[str, Any]:
    """What a plan says of a run over ``samples`` samples, in each of its phases."""
    phases, first = [], 1
    for name in names:
        seen = samples * recipe.num_train_epochs
        steps = -(-seen // recipe.effective_batch_size)
        phases.append(
            {
                "name": name,
                "epoch_samples": samples,
                "num_train_epochs": recipe.num_train_epochs,
                "effective_batch_size": recipe.effective_batch_size,
                "learning_rate": recipe.learning_rate,
                "lr_scheduler_type": recipe.lr_scheduler_type,
                "warmup_steps": recipe.warmup_count(steps),
                "samples": seen,
                "first_step": first,
                "last_step": first + steps - 1,
            }
        )
        first += steps
    return {"phases": phases, "steps": first - 1, "parameters": parameters}


def advice_on(samples: int = 825_487, parameters: float = 7e9, **values: Any) -> dict[str, Advice]:
    recipe = small_recipe(**{**BASE, **values})
    return {line.key: line for line in advise(recipe, plan_of(recipe, samples, parameters))}


def changes(**values: Any) -> dict[str, str]:
    return {key: line.suggestion for key, line in advice_on(**values).items() if line.suggestion}


def test_the_papers_own_recipe_on_its_own_model_needs_no_change() -> None:
    found = advice_on()
    assert [line.key for line in found.values() if line.suggestion] == []
    assert {key: line.confidence for key, line in found.items()} == {
        "effective_batch_size": "high",
        "learning_rate": "high",
        "lr_scheduler_type": "high",
        "warmup_steps": "high",
        "num_train_epochs": "medium",
    }
    assert all(line.reason and "arXiv 2412.13337" in line.source for line in found.values())
    assert "2,150 optimizer steps in all, 215 an epoch" in found["effective_batch_size"].reason


def test_a_run_that_max_steps_cuts_is_judged_by_the_epochs_it_sees() -> None:
    # as a study writes it: no end by epochs, max_steps from the budget
    recipe = small_recipe(**{**BASE, "effective_batch_size": 14, "num_train_epochs": 10_000, "max_steps": 642})
    plan = plan_of(recipe, 3_000)
    plan["phases"][0] |= {"samples": 8_988, "last_step": 642}
    found = {line.key: line for line in advise(recipe, {**plan, "steps": 642})}
    assert "642 optimizer steps in all, 214 an epoch" in found["effective_batch_size"].reason
    assert (found["num_train_epochs"].value, found["num_train_epochs"].suggestion) == ("3", "")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"samples": 20_000}, {"effective_batch_size": "93"}),  # 53 steps; 200,000 samples / 2,150
        ({"samples": 50}, {"effective_batch_size": "8"}),  # no batch smaller than a handful is suggested
        ({"effective_batch_size": 8, "samples": 50}, {}),  # and there nothing else would help
        ({"effective_batch_size": 128}, {"effective_batch_size": "3,839"}),
        ({"effective_batch_size": 128, "num_train_epochs": 3}, {"effective_batch_size": "1,152"}),
        ({"effective_batch_size": 7680}, {}),
        ({"learning_rate": 1e-4}, {"learning_rate": "2e-05"}),
        ({"learning_rate": 1e-6}, {"learning_rate": "2e-05"}),
        ({"model_name_or_path": "mistralai/Mistral-7B-v0.1"}, {"learning_rate": "1e-06"}),
        ({"model_name_or_path": "Qwen/Qwen3-4B"}, {}),
        ({"model_name_or_path": "/data/mistral-experiments/qwen3-4b"}, {}),  # a folder above the model says nothing
        ({"model_name_or_path": "/data/qwen/Mistral-7B/"}, {"learning_rate": "1e-06"}),
        ({"model_name_or_path": "Qwen/Qwen3-4B", "learning_rate": 3e-4}, {"learning_rate": "2e-05"}),
        ({"model_name_or_path": "smol", "learning_rate": 3e-4, "parameters": 1e8}, {}),
        ({"lr_scheduler_type": "cosine"}, {}),
        ({"warmup_steps": 100}, {}),
        ({"warmup_steps": 0.2}, {"warmup_steps": "0"}),
        ({"warmup_steps": 5000}, {"warmup_steps": "0"}),
        ({"num_train_epochs": 20}, {"num_train_epochs": "10"}),
        ({"eval_tasks": []}, {"eval_data": "held-out conversations, or eval_tasks"}),
        ({"use_peft": True}, {}),
        ({"use_peft": True, "effective_batch_size": 128}, {}),  # LoRA loses by large batches
        ({"use_peft": True, "samples": 20_000}, {"effective_batch_size": "93"}),
    ],
)
def test_what_would_be_changed(values: dict[str, Any], expected: dict[str, str]) -> None:
    assert changes(**values) == expected


@pytest.mark.parametrize("batch", [128, 3840])
def test_of_the_batch_of_lora_advice_and_plan_say_the_same(batch: int) -> None:
    line = advice_on(use_peft=True, effective_batch_size=batch)["effective_batch_size"]
    assert "LoRA loses more than full fine-tuning by large batches, at any rank" in line.reason
    assert (line.suggestion, line.source, line.confidence) == ("", REGRET, "low")
    resolved = resolve_recipe(values={**BASE, "data": ["t.jsonl"], "output_dir": "run", "use_peft": True})
    cost = ModelCost(100, 80, 20, 0.0, 0, adapter=10, adapted=80)
    assert ["LoRA loses more by large batches, at any rank" in warning for warning in of_lora(resolved, cost)] == [True]


def test_what_an_adapter_does_not_reach_is_said() -> None:
    values = {**BASE, "data": ["t.jsonl"], "output_dir": "run", "use_peft": True, "effective_batch_size": 64}
    mixture = ModelCost(100, 80, 20, 0.0, 0, adapter=10, adapted=20)
    (warning,) = of_lora(resolve_recipe(values=values), mixture)
    assert warning.startswith("the adapter stands beside 25% of the weights in this model's layers: experts")
    assert of_lora(resolve_recipe(values={**values, "lora_target_modules": ["q_proj"]}), mixture) == []
    assert of_lora(resolve_recipe(values={**values, "use_peft": False}), mixture) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(200, 2_000_000), st.integers(1, 20_000), st.integers(1, 20))
def test_a_suggested_batch_needs_no_further_suggestion(samples: int, batch: int, epochs: int) -> None:
    values = {"num_train_epochs": epochs, "samples": samples}
    line = advice_on(effective_batch_size=batch, **values)["effective_batch_size"]
    if line.suggestion:
        suggested = int(line.suggestion.replace(",", ""))
        assert (suggested < batch) == (-(-samples * epochs // batch) < FEWEST_STEPS)
        assert advice_on(effective_batch_size=suggested, **values)["effective_batch_size"].suggestion == ""
        if 8 < suggested < 3840:
            assert samples * epochs / suggested == pytest.approx(STEPS, rel=0.1)


def test_a_decay_before_another_phase_is_advised_against() -> None:
    recipe = small_recipe(**BASE, lr_scheduler_type="cosine")
    lines = [
        line for line in advise(recipe, plan_of(recipe, 400_000, names=("a", "b"))) if line.key == "lr_scheduler_type"
    ]
    assert [(line.phase, line.suggestion) for line in lines] == [("a", "constant"), ("b", "")]


def test_other_methods_and_sizes_are_one_step_less_sure() -> None:
    assert advice_on()["warmup_steps"].confidence == "high"
    assert advice_on(parameters=1.35e8)["warmup_steps"].confidence == "medium"
    assert advice_on(use_peft=True)["warmup_steps"].confidence == "medium"
    assert advice_on(parameters=1.35e8)["num_train_epochs"].confidence == "low"
    recipe = small_recipe(**BASE)
    assert "this one has 135M parameters" in less_sure(recipe, plan_of(recipe, 100, 1.35e8))
    assert less_sure(recipe, plan_of(recipe, 100)) == ""


def scale(value: float, low: float, high: float) -> NoiseScale:
    return NoiseScale(value, low, high, 1.0, value, 16, 8)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (scale(400.0, 300.0, 600.0), ["3,840 is above it", "91% of the progress", "10.6 times", "ended higher"]),
        (scale(40_000.0, 9_000.0, math.inf), ["3,840 is below it", "9%", "larger --probe", "9,000 to infinite"]),
        (scale(4_000.0, 900.0, 9_000.0), ["3,840 is about at it", "within the interval"]),
        (scale(math.inf, 900.0, math.inf), ["not comparable", "infinite"]),
        (scale(0.0, 0.0, 0.0), ["all samples agree"]),
    ],
)
def test_the_noise_scale_in_words(found: NoiseScale, words: list[str]) -> None:
    text = "\n".join(explain_probe(found, [3840, 3840]))
    assert all(word in text for word in words), text
    assert text.count("effective_batch_size 3,840") == 1


def test_a_short_phase_of_a_long_run_is_not_told_to_take_a_larger_batch() -> None:
    recipe = small_recipe(**BASE, effective_batch_size=128, num_train_epochs=1)
    plan = plan_of(recipe, 1_200_000, names=("one", "two"))
    assert [line.suggestion for line in advise(recipe, plan) if line.key == "effective_batch_size"] == ["1,116"] * 2
    plan["phases"][1] |= {"last_step": plan["phases"][1]["first_step"] + 18, "samples": 19 * 128}
    batches = [line.suggestion for line in advise(recipe, plan) if line.key == "effective_batch_size"]
    assert batches[0]
    assert not batches[1]
