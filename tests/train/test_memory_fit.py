from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny_folder import write_tiny_folder
from tests.train.crash_harness import write_rows
from tests.train.memory_run import ALONE
from transformers import LlamaConfig, LlamaForCausalLM

import sengi.train.memory_fit as module
from sengi.cli.plan import memory_lines
from sengi.conversation import Sample
from sengi.errors import RecipeError
from sengi.model.live_bytes import PHASES, MicroBatch
from sengi.model.memory import COMPILED
from sengi.recipe_sources import resolve_recipe
from sengi.train.observer import Observer
from sengi.train.setup import Setup, set_up


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    write_tiny_folder(folder / "model")
    write_rows(folder / "train.jsonl", 0, 30)
    return folder


def setup(folder: Path, earlier: dict[str, Any] | None = None, **more: Any) -> Setup:
    values: dict[str, Any] = {
        "model_name_or_path": str(folder / "model"),
        "data": [{"path": str(folder / "train.jsonl")}],
        "output_dir": str(folder / "run"),
        "effective_batch_size": 10,
        "num_train_epochs": 1,
        "dtype": "float32",
    }
    return set_up(resolve_recipe(None, values=values | more), ALONE, Observer(), earlier)


def test_a_tiny_model_fits_as_it_is(folder: Path) -> None:
    plan = setup(folder).plan
    assert (plan.gradient_checkpointing, plan.max_tokens_per_device) == ("none", 4096)
    assert not [text for text in plan.warnings if "memory" in text or "rough" in text]
    memory = json.loads(json.dumps(plan.to_dict()))["forecast"]["memory"]
    assert memory["peak"] == sum(memory["parts"].values())
    assert memory["peak"] < memory["available"]
    assert memory["parts"]["weights"] == 4 * plan.parameters
    assert memory["parts"]["optimizer"] == 8 * plan.parameters


# A model of 8B parameters whose weights are a hole in a file of 16 GB: the config is all that is read.
def test_no_weight_is_read(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra lora")
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
    )
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    config.save_pretrained(model)
    with torch.device("meta"):
        weights = LlamaForCausalLM(config).state_dict()
    header, end = {}, 0
    for name, weight in weights.items():
        size = 2 * weight.numel()
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [end, end + size]}
        end += size
    begin = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(begin).to_bytes(8, "little") + begin)
        file.truncate(8 + len(begin) + end)
    before = module.resident_memory()
    plan = setup(folder, model_name_or_path=str(model), output_dir=str(tmp_path / "run"), use_peft=True).plan
    assert plan.parameters == 8_030_261_248
    assert plan.memory["parts"]["weights"] > 4 * plan.parameters  # in float32, and the adapter's
    assert any("this run will probably not fit" in text for text in plan.warnings)
    assert module.resident_memory() - before < 1e9


def test_the_plan_prints_each_part_the_sum_and_what_is_free(folder: Path) -> None:
    memory = setup(folder).plan.memory
    lines = memory_lines(memory)
    assert lines[0][0] == "memory"
    assert (
        f"about {memory['peak'] / 1e9:,.2f} GB for each process of {memory['available'] / 1e9:,.2f} GB" in lines[0][1]
    )
    assert [line.split("GB  ")[1] for _, line in lines[1:]] == list(memory["parts"])


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A model whose activations take 1, 0.5 or 0.1 MB a token, on a machine with 2 GB."""
    seen: list[Any] = []

    def trace(config: Any, adapt: Any, samples: list[Sample], dial: str, *more: Any, **named: Any) -> Any:
        tokens = sum(len(sample.input_ids) for sample in samples)
        seen.append((dial, tokens))
        size = tokens * {"none": 1e6, "selective": 0.5e6, "full": 0.1e6}[dial]
        return MicroBatch(size, dict.fromkeys(PHASES, size))

    monkeypatch.setattr(module, "trace_model", trace)
    monkeypatch.setattr(module, "resident_memory", lambda: 0)
    monkeypatch.setattr(module, "available_memory", lambda device, share: 2_000_000_000)
    return seen


def test_dial_and_budget_follow_the_memory_of_the_machine(folder: Path, traces: list[Any]) -> None:
    # a step of ten samples has about 400 tokens: they fit as they are
    assert setup(folder).plan.gradient_checkpointing == "none"
    plan = setup(folder, effective_batch_size=30, max_tokens_per_device=4000).plan
    assert plan.gradient_checkpointing == "none"
    data = [{"path": str(folder / "train.jsonl"), "weight": 9.0}]
    many: dict[str, Any] = {"data": data, "effective_batch_size": 270}
    plan = setup(folder, **many).plan
    assert plan.gradient_checkpointing == "none"
    assert 1024 <= plan.max_tokens_per_device < 2048
    plan = setup(folder, **many, max_tokens_per_device=1900).plan
    assert plan.gradient_checkpointing == "selective"
    plan = setup(folder, **many, max_tokens_per_device=3000, gradient_checkpointing=False).plan
    assert plan.gradient_checkpointing == "none"
    assert plan.warnings[0].startswith("about 3.")
    assert "GB of memory will be needed and 2.00 GB can be had: this run will probably not fit" in plan.warnings[0]
    assert "set max_tokens_per_device: 1500; or gradient_checkpointing: full; or optim" in plan.warnings[0]


# What layers keep is a part of the forecast, and with it the share of the heap that follows it (memory.HELD_KEPT).
def test_compiled_layers_keep_less(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(config: Any, adapt: Any, samples: list[Sample], dial: str, *more: Any, **named: Any) -> Any:
        size = 1e8 if dial == "none" else 1e7
        return MicroBatch(size, {**dict.fromkeys(PHASES, size), PHASES[-1]: 0.0})

    monkeypatch.setattr(module, "trace_model", trace)
    monkeypatch.setattr(module, "resident_memory", lambda: 0)
    plain, compiled, full = (
        setup(folder, **values).plan.memory["parts"]
        for values in (
            {"torch_compile": False},
            {"torch_compile": True},
            {"torch_compile": True, "gradient_checkpointing": True},
        )
    )
    assert compiled["activations"] == pytest.approx((1 - COMPILED) * plain["activations"], abs=1)
    assert compiled["allocator"] < plain["allocator"]
    assert {**compiled, "activations": 0, "allocator": 0} == {**plain, "activations": 0, "allocator": 0}
    assert full["activations"] == pytest.approx(0.1 * plain["activations"], abs=1)  # inputs of layers, compiled or not


def test_what_a_run_chose_stays_when_it_is_continued(folder: Path, traces: list[Any]) -> None:
    earlier: dict[str, Any] = {
        "data": {"template_date": ""},
        "dtype": "float32",
        "max_tokens_per_device": 512,
        "max_tokens_reduced_from": 1024,
        "gradient_checkpointing": "selective",
    }
    kept = setup(folder, earlier).plan
    assert (kept.max_tokens_per_device, kept.max_tokens_reduced_from) == (512, 1024)
    assert kept.gradient_checkpointing == "selective"
    # the budget that had no memory is not tried again; another one is an answer to that
    assert setup(folder, earlier, max_tokens_per_device=1024).plan.max_tokens_per_device == 512
    again = setup(folder, earlier, max_tokens_per_device=800, gradient_checkpointing="full").plan
    assert (again.max_tokens_per_device, again.max_tokens_reduced_from) == (800, None)
    assert again.gradient_checkpointing == "full"
    # a plan of an older version
    old = {
        key: value for key, value in earlier.items() if key not in ("max_tokens_reduced_from", "gradient_checkpointing")
    }
    assert setup(folder, old).plan.gradient_checkpointing == "none"


# A continued run starts without tracing again, unless something that the forecast depends on is another.
def test_a_continued_run_takes_over_its_forecast(folder: Path, traces: list[Any]) -> None:
    first = setup(folder).plan
    earlier = json.loads(json.dumps(first.to_dict()))
    earlier["data"] = {"template_date": ""}
    count = len(traces)
    assert count > 0
    again = setup(folder, earlier).plan
    assert len(traces) == count
    assert again.memory == first.memory
    setup(folder, earlier, max_tokens_per_device=300)
    assert len(traces) > count
    count = len(traces)
    setup(folder, earlier | {"max_tokens_reduced_from": 9000})
    assert len(traces) > count


def test_a_model_that_cannot_be_traced_is_guessed_aloud(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("needs numbers")

    monkeypatch.setattr(module, "trace_model", fails)
    plan = setup(folder).plan
    assert plan.warnings[0] == (
        "the forecast of activations is a rough guess: this model cannot be traced (NotImplementedError)"
    )
    assert plan.memory["parts"]["activations"] > 0


def test_true_and_false_are_hugging_faces_words(folder: Path) -> None:
    values = {"model_name_or_path": "m", "data": [{"path": "d"}], "output_dir": "o"}
    for given, wanted in ((True, "full"), (False, "none"), ("selective", "selective")):
        assert (
            resolve_recipe(None, values=values | {"gradient_checkpointing": given}).recipe.gradient_checkpointing
            == wanted
        )
    assert resolve_recipe(None, ["gradient_checkpointing=true"], values).recipe.gradient_checkpointing == "full"
    assert resolve_recipe(None, ["gradient_checkpointing=none"], values).recipe.gradient_checkpointing == "none"
    with pytest.raises(RecipeError, match="gradient_checkpointing"):
        resolve_recipe(None, values=values | {"gradient_checkpointing": "some"})


def test_the_resident_set_is_that_of_this_process() -> None:
    before = module.resident_memory()
    held = torch.ones(20_000_000)
    assert module.resident_memory() - before > 60_000_000
    assert len(held) == 20_000_000
