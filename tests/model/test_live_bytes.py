from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.model.families import FAMILIES, VOCAB, family, small_model
from tests.train.memory_run import small_recipe
from transformers import AutoModelForCausalLM, PreTrainedModel

from sengi.conversation import Sample
from sengi.data.packs import make_pack
from sengi.model.checkpointing import DIALS, checkpoint_layers, transformer_layers
from sengi.model.live_bytes import FEW, LiveBytes, _few, _pack, _period, trace_micro_batch, trace_model
from sengi.model.lora import add_adapter
from sengi.model.supervised import prepare

CPU = torch.device("cpu")
Adapt = Callable[[PreTrainedModel], None]
LENGTHS = [40, 33, 7]
TARGETS = 50


def nothing(lm: PreTrainedModel) -> None:
    """Full fine-tuning: the plain model is what is trained."""


def with_adapter(lm: PreTrainedModel) -> None:
    """LoRA: what is trained is an adapter beside frozen weights."""
    add_adapter(lm, small_recipe(use_peft=True, lora_r=4))


def real_peak(
    name: str, dial: str, autocast: torch.dtype | None, adapt: Adapt = nothing, adds_at_once: bool = False
) -> int:
    """The same counted while real numbers are computed."""
    lm = copy.deepcopy(family(name))
    adapt(lm)
    model = prepare(lm)
    if adds_at_once:
        model.add_gradients_at_once()
    checkpoint_layers(transformer_layers(model), dial)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    data = _pack(LENGTHS, TARGETS)
    weights = torch.ones(len(data.targets))
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    with LiveBytes([*model.parameters(), *model.buffers(), *grads, *vars_of(data), weights]) as live:
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            loss, _ = model(data, weights)
        loss.backward()
        return max(live.peaks.values())


def vars_of(data: object) -> list[torch.Tensor]:
    return [value for value in vars(data).values() if isinstance(value, torch.Tensor)]


# What is computed without content keeps the bytes that the real computation keeps.
@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_counts_what_the_real_computation_holds(name: str) -> None:
    traced = trace_micro_batch(build(name), LENGTHS, TARGETS, "none", CPU, None)
    assert max(traced.peaks.values()) == pytest.approx(real_peak(name, "none", None), rel=0.01)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3, window"])
def test_a_trace_counts_an_adapter(name: str) -> None:
    pytest.importorskip("peft", reason="needs the extra lora")
    config = copy.deepcopy(family(name).config)
    traced = trace_model(config, with_adapter, LENGTHS, TARGETS, "none", CPU, None)
    assert max(traced.peaks.values()) == pytest.approx(real_peak(name, "none", None, with_adapter), rel=0.01)
    assert traced.peaks != trace_model(config, nothing, LENGTHS, TARGETS, "none", CPU, None).peaks


@pytest.mark.parametrize(
    ("dial", "autocast"),
    [("selective", None), ("full", None), ("none", torch.bfloat16), ("full", torch.bfloat16)],
)
def test_a_trace_follows_the_dial_and_autocast(dial: str, autocast: torch.dtype | None) -> None:
    traced = trace_micro_batch(build("llama"), LENGTHS, TARGETS, dial, CPU, autocast)
    assert max(traced.peaks.values()) == pytest.approx(real_peak("llama", dial, autocast), rel=0.01)


# One process on a CPU: the head's gradient is never there twice.
def test_a_trace_follows_a_gradient_that_is_added_at_once() -> None:
    traced, twice = (
        trace_micro_batch(build("llama"), LENGTHS, TARGETS, "none", CPU, None, flag) for flag in (True, False)
    )
    assert max(traced.peaks.values()) == pytest.approx(real_peak("llama", "none", None, adds_at_once=True), rel=0.01)
    assert traced.peaks["loss head backward"] < twice.peaks["loss head backward"]


def build(name: str) -> Callable[[], PreTrainedModel]:
    """Makes a model of the family's config where it is called: without content."""
    config = copy.deepcopy(family(name).config)
    return lambda: AutoModelForCausalLM.from_config(config, dtype=torch.float32)


# Two traces of a few layers give that of all layers, to the byte.
@pytest.mark.parametrize("dial", DIALS)
def test_a_few_layers_stand_for_all(dial: str) -> None:
    config = small_model("LlamaConfig", {"num_hidden_layers": 5, "tie_word_embeddings": False}).config
    whole = trace_model(config, nothing, LENGTHS, TARGETS, dial, CPU, None)
    own = copy.deepcopy(config)
    direct = trace_micro_batch(
        lambda: AutoModelForCausalLM.from_config(own, dtype=torch.float32), LENGTHS, TARGETS, dial, CPU, None
    )
    assert whole.saved == direct.saved
    assert whole.peaks == direct.peaks
    assert config.num_hidden_layers == 5  # the caller's config is not changed


def test_layers_of_two_kinds_are_traced_by_whole_periods() -> None:
    assert _period(None) == 1
    assert _period(["full_attention"] * 5) == 1
    assert _period((["sliding_attention"] * 5 + ["full_attention"]) * 3) == 6
    assert _period(["a", "b", "a", "b", "a"]) == 2
    config = small_model("Gemma3TextConfig", {"num_hidden_layers": 8, "head_dim": 8, "sliding_window": 5}).config
    config.layer_types = ["sliding_attention", "full_attention"] * 4
    traced = trace_model(config, nothing, LENGTHS, TARGETS, "none", CPU, None)
    assert traced.saved > 0


def test_frozen_weights_keep_less() -> None:
    config = family("llama").config

    def freeze(lm: PreTrainedModel) -> None:
        for name, parameter in lm.named_parameters():
            parameter.requires_grad_("norm" in name)

    frozen = trace_model(config, freeze, LENGTHS, TARGETS, "none", CPU, None)
    whole = trace_model(config, nothing, LENGTHS, TARGETS, "none", CPU, None)
    assert frozen.saved < whole.saved
    assert frozen.peaks["loss head"] - frozen.saved < whole.peaks["loss head"] - whole.saved  # no gradient of the head


def test_many_documents_are_traced_as_few_of_the_same_tokens() -> None:
    for lengths in ([5], [5, 3], [7] * 40, [100, *[3] * 20], list(range(2, 60))):
        few = _few(lengths)
        assert sum(few) == sum(lengths)
        assert len(few) <= max(FEW, 1)
        assert min(few) >= 1


def test_targets_are_spread_over_the_documents() -> None:
    assert len(_pack([10, 10], 12).targets) == 12
    assert len(_pack([10, 10], 400).targets) == 18  # the first token of a document is no target
    assert len(_pack([10], 0).targets) == 0


def test_storages_are_counted_once_and_while_they_live() -> None:
    held = torch.zeros(1000)
    with LiveBytes([held]) as live:
        assert live.now == 0
        view = held[:10]
        assert live.now == 0  # a view of what was there
        made = held + 1
        assert live.now == 4000
        same = made.view(10, 100)
        assert live.now == 4000
        del made
        assert live.now == 4000
        del same
        assert live.now == 0
    assert live.peaks["forward"] == 4000
    assert len(view) == 10


def test_the_pack_of_the_test_is_like_a_real_one() -> None:
    sample = Sample(np.zeros(5, np.int32), np.ones(5, np.uint8))
    assert len(make_pack([sample]).targets) == len(_pack([5], 4).targets)
    assert family("llama").config.vocab_size == VOCAB
