"""What `all-linear` means in families that are not plain transformers; no weight is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tests.train.memory_run import small_recipe
from transformers import PreTrainedModel

from sengi.model.cost import model_cost
from sengi.model.lora import add_adapter, target_names

pytest.importorskip("peft", reason="needs the extra lora")
ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
DENSE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100}
HEADS: dict[str, Any] = DENSE | {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
STATE: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
HYBRID = HEADS | STATE | {"num_local_experts": 4, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 32}
SHARED = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}


def model(name: str, values: dict[str, Any]) -> PreTrainedModel:
    with torch.device("meta"):
        found = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**values))
    assert isinstance(found, PreTrainedModel)
    return found


@pytest.mark.parametrize(
    ("name", "values", "expected", "whole"),
    [
        ("LlamaConfig", HEADS, ["down_proj", "gate_proj", *ATTENTION, "up_proj"], True),
        # experts lie in one tensor, for which peft has no such layer; routers are no linear layers
        ("MixtralConfig", HEADS | {"num_local_experts": 4}, ATTENTION, False),
        # the gate of the shared expert has one output
        ("Qwen2MoeConfig", HEADS | SHARED, ["down_proj", "gate_proj", *ATTENTION, "up_proj"], False),
        # of state-space layers the first projection: their kernels take the weights of the others by themselves
        ("GraniteMoeHybridConfig", HYBRID, ["in_proj", "input_linear", *ATTENTION, "output_linear"], False),
        (
            "FalconH1Config",
            HEADS | STATE | {"mamba_d_ssm": 64},
            ["down_proj", "gate_proj", "in_proj", *ATTENTION, "up_proj"],
            False,
        ),
        ("MambaConfig", DENSE | {"state_size": 8}, ["in_proj"], False),
        ("Lfm2Config", HEADS | {"layer_types": ["conv", "full_attention"]}, None, True),
    ],
)
def test_all_linear_is_what_an_adapter_can_stand_beside(
    name: str, values: dict[str, Any], expected: list[str] | None, whole: bool
) -> None:
    lm = model(name, values)
    names = target_names(lm, "all-linear")
    assert expected is None or names == sorted(expected)
    add_adapter(lm, small_recipe(use_peft=True, lora_r=2))
    cost = model_cost(lm)
    assert (cost.adapted > 0.9 * cost.linear) is whole
    assert cost.adapter > 0


def test_names_that_are_asked_for_are_taken() -> None:
    assert target_names(model("GraniteMoeHybridConfig", HYBRID), ["out_proj"]) == ["out_proj"]
