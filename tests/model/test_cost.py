from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.model.families import FAMILIES, VOCAB, family
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from sengi.conversation import Sample
from sengi.data.packs import make_pack
from sengi.model import cost as module
from sengi.model.cost import ModelCost, available_memory, best_dtype, model_cost, peak_flops
from sengi.model.supervised import prepare

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["llama", "llama, tied", "gemma3", "qwen3"])
def test_flops_are_those_that_torch_counts(name: str) -> None:
    # torch's counter sees every matrix product of forward and backward: linear layers as mm, attention as bmm
    lm = copy.deepcopy(family(name))
    cost = model_cost(lm)
    lengths = [20, 33, 7]
    samples = [Sample(np.arange(n, dtype=np.int32) % VOCAB, np.ones(n, np.uint8)) for n in lengths]
    pack, model = make_pack(samples), prepare(lm)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(pack, torch.ones(len(pack.targets)))[0].backward()
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    attention = sum(flops for op, flops in counted.items() if "bmm" in op)
    assert sum(counted.values()) - attention == cost.flops(sum(lengths), len(pack.targets), 0)
    # whole squares there, the causal half of them in the formula
    assert attention / 2 == cost.flops(0, 0, sum(n * n for n in lengths))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_config_alone_gives_the_same_sizes(name: str) -> None:
    # the forecast is made before weights are read
    lm = family(name)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(lm.config)
    assert model_cost(empty) == model_cost(lm)


def test_tied_weights_count_once() -> None:
    tied, untied = model_cost(family("llama, tied")), model_cost(family("llama"))
    assert untied.parameters - tied.parameters == VOCAB * 32
    assert tied.linear == untied.linear
    assert tied.head == untied.head == VOCAB * 32


def test_attention_cost_is_the_exchange_rate_of_packing() -> None:
    cost = model_cost(family("llama"))
    # a document of L tokens costs 6 * linear * (L + attention_cost * L**2)
    assert 6 * cost.linear * (50 + cost.attention_cost * 2500) == pytest.approx(cost.flops(50, 0, 2500))
    assert ModelCost(1, 0, 1, 1.0, 1).attention_cost == 0.0


def test_memory_is_shared_by_the_ranks_of_a_machine() -> None:
    one, four = available_memory(CPU, 1), available_memory(CPU, 4)
    assert 0 < four < one < 1 << 50
    assert one / four == pytest.approx(4, rel=0.3)


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert module._container_room(77, tmp_path) == 77  # no control groups here
    (tmp_path / "memory.max").write_text("max\n")
    assert module._container_room(77, tmp_path) == 77
    for name, text in (("max", "1000"), ("current", "700"), ("stat", "anon 500\ninactive_file 150\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert module._container_room(77, tmp_path) == 450
    (tmp_path / "memory.current").write_text("2000")
    assert module._container_room(77, tmp_path) == 0


def test_peak_of_a_cpu_is_measured() -> None:
    peak = peak_flops(CPU, torch.float32)
    assert peak is not None
    assert 1e8 < peak < 1e14


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312e12),
        ("NVIDIA H100 80GB HBM3", torch.float32, None),
        ("NVIDIA GeForce GTX 1080", torch.bfloat16, None),
    ],
)
def test_peak_of_a_gpu_is_the_data_sheets(
    name: str, dtype: torch.dtype, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), dtype) == peak


def test_bfloat16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr(module.torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(module.torch.cpu, "_is_amx_tile_supported", lambda: False)
        dtype, reason = best_dtype(CPU)
        assert dtype == (torch.bfloat16 if native else torch.float32)
        assert ("natively" in reason) == native


# Of four experts a token is sent to two: the other halves of their tensors are no work.
def test_experts_that_a_token_is_not_sent_to_cost_nothing() -> None:
    values = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.device("meta"):
        lm = MixtralForCausalLM(MixtralConfig(**values, **heads, num_local_experts=4, num_experts_per_tok=2))
    cost = model_cost(lm)
    one = 3 * 16 * 32
    assert cost.unused == 2 * 2 * one
    assert cost.flops(10, 0, 0.0) == 6 * 10 * (cost.linear - 4 * one)
