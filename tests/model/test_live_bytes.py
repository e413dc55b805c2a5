from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from tests.model.families import FAMILIES, VOCAB, family, small_model
from tests.train.memory_run import small_recipe
from transformers import AutoModelForCausalLM, PreTrainedModel

from sengi.conversation import Sample
from sengi.data.packs import make_pack
from sengi.model.checkpointing import DIALS, checkpoint_layers, transformer_layers
from sengi.model.live_bytes import LiveBytes, _period, trace_micro_batch, trace_model
from sengi.model.lora import add_adapter
from sengi.model.supervised import prepare

CPU = torch.device("cpu")
Adapt = Callable[[PreTrainedModel], None]


def conversations(lengths: list[int], targets: int, alike: int = 0, behind: int = 0) -> list[Sample]:
    """Samples whose last tokens are targets but for ``behind`` of them; ``alike`` tokens begin each."""
    samples = []
    for number, length in enumerate(lengths):
        ids = np.full(length, number % VOCAB, np.int32)
        ids[:alike] = 1
        mask = np.zeros(length, np.uint8)
        mask[max(1, length - targets - behind) : length - behind] = 1
        samples.append(Sample(ids, mask))
    return samples


SAMPLES = conversations([40, 33, 7], 16)
LEAN = conversations([40, 33, 30, 40], 10, alike=12, behind=3)


def nothing(lm: PreTrainedModel) -> None:
    """Full fine-tuning: the plain model is what is trained."""


def with_adapter(lm: PreTrainedModel) -> None:
    """LoRA: what is trained is an adapter beside frozen weights."""
    add_adapter(lm, small_recipe(use_peft=True, lora_r=4))


def real_peak(
    name: str,
    dial: str,
    autocast: torch.dtype | None,
    adapt: Adapt = nothing,
    adds_at_once: bool = False,
    samples: Sequence[Sample] = SAMPLES,
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
    data = make_pack(samples, lean=model.padding_free)
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
    traced = trace_micro_batch(build(name), SAMPLES, "none", CPU, None)
    assert max(traced.peaks.values()) == pytest.approx(real_peak(name, "none", None), rel=0.01)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3, window"])
def test_a_trace_counts_an_adapter(name: str) -> None:
    pytest.importorskip("peft", reason="needs the extra lora")
    config = copy.deepcopy(family(name).config)
    traced = trace_model(config, with_adapter, SAMPLES, "none", CPU, None)
    assert max(traced.peaks.values()) == pytest.approx(real_peak(name, "none", None, with_adapter), rel=0.01)
    assert traced.peaks != trace_model(config, nothing, SAMPLES, "none", CPU, None).peaks


@pytest.mark.parametrize(
    ("dial", "autocast"),
    [("selective", None), ("full", None), ("none", torch.bfloat16), ("full", torch.bfloat16)],
)
def test_a_trace_follows_the_dial_and_autocast(dial: str, autocast: torch.dtype | None) -> None:
    traced = trace_micro_batch(build("llama"), SAMPLES, dial, CPU, autocast)
    assert max(traced.peaks.values()) == pytest.approx(real_peak("llama", dial, autocast), rel=0.01)


# One process on a CPU: the head's gradient is never there twice.
def test_a_trace_follows_a_gradient_that_is_added_at_once() -> None:
    traced, twice = (trace_micro_batch(build("llama"), SAMPLES, "none", CPU, None, flag) for flag in (True, False))
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
    whole = trace_model(config, nothing, SAMPLES, dial, CPU, None)
    own = copy.deepcopy(config)
    direct = trace_micro_batch(
        lambda: AutoModelForCausalLM.from_config(own, dtype=torch.float32), SAMPLES, dial, CPU, None
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
    traced = trace_model(config, nothing, SAMPLES, "none", CPU, None)
    assert traced.saved > 0


def test_frozen_weights_keep_less() -> None:
    config = family("llama").config

    def freeze(lm: PreTrainedModel) -> None:
        for name, parameter in lm.named_parameters():
            parameter.requires_grad_("norm" in name)

    frozen = trace_model(config, freeze, SAMPLES, "none", CPU, None)
    whole = trace_model(config, nothing, SAMPLES, "none", CPU, None)
    assert frozen.saved < whole.saved
    assert frozen.peaks["loss head"] - frozen.saved < whole.peaks["loss head"] - whole.saved  # no gradient of the head


# A beginning that all share and what stands behind the last target are not computed, and not counted.
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_trace_follows_a_lean_pack(autocast: torch.dtype | None) -> None:
    assert make_pack(LEAN, lean=True).shared == 12
    traced = trace_micro_batch(build("llama"), LEAN, "none", CPU, autocast)
    real = real_peak("llama", "none", autocast, samples=LEAN)
    assert max(traced.peaks.values()) == pytest.approx(real, rel=0.01)
    apart = trace_micro_batch(build("llama"), conversations([43, 36, 33, 43], 10), "none", CPU, autocast)
    assert traced.saved < 0.8 * apart.saved


def test_where_layers_carry_state_documents_are_counted_whole() -> None:
    def with_convolution() -> PreTrainedModel:
        lm = build("llama")()
        lm.get_decoder().layers[0].conv = torch.nn.Conv1d(1, 1, 1)
        return lm

    whole = trace_micro_batch(with_convolution, LEAN, "none", CPU, None)
    assert whole.saved > 1.2 * trace_micro_batch(build("llama"), LEAN, "none", CPU, None).saved


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
