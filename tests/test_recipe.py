from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from sengi.recipe import DataEntry, Recipe, default_reason, description, field_names
from tests.train.memory_run import small_recipe

# Keys whose default is "nothing asked for": there is nothing to justify
NO_CHOICE = {"model_name_or_path", "data", "output_dir", "eval_data", "eval_questions", "eval_tasks", "report_to"}


@pytest.mark.parametrize("key", field_names())
def test_every_key_has_a_sentence_and_a_default_that_matters_has_a_reason(key: str) -> None:
    text = description(key)
    assert re.fullmatch(r"(`|[A-Z]).{15,}\.", text), text
    assert "  " not in text
    assert bool(default_reason(key)) == (key not in NO_CHOICE)


@pytest.mark.parametrize("key", list(DataEntry.model_fields))
def test_every_key_of_a_data_entry_has_a_sentence(key: str) -> None:
    assert str(DataEntry.model_fields[key].description).strip().endswith(".")


def test_defaults_are_the_papers() -> None:
    recipe = small_recipe()
    # arXiv 2412.13337: LAB configuration and the authors' training code
    assert recipe.effective_batch_size == 3840
    assert recipe.learning_rate == 2e-5
    assert (recipe.lr_scheduler_type, recipe.warmup_steps) == ("constant", 0)
    assert (recipe.adam_beta1, recipe.adam_beta2, recipe.weight_decay) == (0.9, 0.95, 0.0)
    assert recipe.max_grad_norm == 1.0
    assert recipe.save_samples == 250_000
    assert recipe.loss_reduction == "token"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", -1e-5),
        ("learning_rate", 0),
        ("learning_rate", 2),
        ("learning_rate", "nan"),
        ("learning_rate", "inf"),
        ("learning_rate", "fast"),
        ("learning_rate", None),
        ("effective_batch_size", 0),
        ("effective_batch_size", -5),
        ("effective_batch_size", 1.5),
        ("effective_batch_size", True),
        ("num_train_epochs", 0),
        ("max_steps", 0),
        ("max_length", 7),
        ("max_tokens_per_device", 7),
        ("max_tokens_per_device", -1),
        ("max_tokens_per_device", "many"),
        ("warmup_steps", -1),
        ("warmup_steps", 1.5),
        ("warmup_steps", "inf"),
        ("weight_decay", -0.1),
        ("adam_beta1", 1.0),
        ("adam_beta2", -0.1),
        ("adam_epsilon", 0),
        ("adam_epsilon", "inf"),
        ("max_grad_norm", -1),
        ("max_grad_norm", "nan"),
        ("seed", -1),
        ("seed", 2**32),
        ("save_steps", 0),
        ("save_total_limit", 0),
        ("eval_steps", 0),
        ("overlong", "cut"),
        ("loss_reduction", "mean"),
        ("lr_scheduler_type", "cosine_with_restarts"),
        ("dtype", "float16"),
        ("report_to", ["mlflow"]),
        ("data", []),
        ("model_name_or_path", ""),
        ("no_such_key", 1),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        small_recipe(**{key: value})


@pytest.mark.parametrize("weight", [0, -1, 1001, "nan", "inf"])
def test_weights_out_of_range_are_refused(weight: Any) -> None:
    with pytest.raises(ValidationError):
        DataEntry(path="a", weight=weight)


# ten times full fine-tuning's; a rate that is given wins
def test_the_default_rate_follows_the_method() -> None:
    assert small_recipe(use_peft=True).learning_rate == 10 * small_recipe().learning_rate
    assert small_recipe(use_peft="true").learning_rate == 2e-4
    assert small_recipe(use_peft=True, learning_rate=2e-5).learning_rate == 2e-5
    lora = small_recipe(use_peft=True, load_in_4bit=True)
    assert Recipe.model_validate(lora.model_dump()) == lora
    assert "ten times" in default_reason("learning_rate", lora)
    assert "ten times" not in default_reason("learning_rate", small_recipe())


@pytest.mark.parametrize(
    ("key", "value"),
    [("load_in_4bit", True), ("lora_r", 16), ("lora_alpha", 16), ("lora_target_modules", ["q_proj"])],
)
def test_keys_of_lora_mean_nothing_without_it(key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=f"{key} is .*, but no adapter is trained; set use_peft: true or remove"):
        small_recipe(**{key: value})
    assert getattr(small_recipe(use_peft=True, **{key: value}), key) == value
    # as a resolved recipe writes it
    assert small_recipe(**{key: Recipe.model_fields[key].default})


@pytest.mark.parametrize(("key", "value"), [("lora_r", 0), ("lora_alpha", 0), ("lora_target_modules", [])])
def test_values_of_lora_out_of_range_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        small_recipe(use_peft=True, **{key: value})


def test_a_recipe_does_not_change_after_validation() -> None:
    recipe = small_recipe()
    with pytest.raises(ValidationError):
        recipe.learning_rate = 1.0  # type: ignore[misc]
    assert isinstance(recipe, Recipe)


@pytest.mark.parametrize(("asked", "steps", "expected"), [(0, 50, 0), (25, 50, 25), (0.03, 1000, 30), (0.001, 10, 1)])
def test_warm_up_in_steps_or_as_a_share(asked: float, steps: int, expected: int) -> None:
    assert small_recipe(warmup_steps=asked).warmup_count(steps) == expected
