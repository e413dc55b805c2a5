from __future__ import annotations

import copy

import pytest
import torch
from tests.model.families import FAMILIES, VOCAB, family, small_model
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from sengi.inference import slots as slots_module
from sengi.inference.lent_model import lent, rope_limit
from sengi.inference.slot_model import NAME, SlotModel, slot_attention
from sengi.inference.slot_support import OneRow, supports_slots


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def alone(model: PreTrainedModel, text: list[int]) -> Tensor:
    """By definition: the whole text through the model's own forward."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]


# Rows that come, go and move between steps see their own tokens, the prefix, and nothing of each other.
@pytest.mark.parametrize("prefix", [0, 7])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_rows_equal_texts_run_alone(name: str, prefix: int) -> None:
    model = family(name)
    before = model.config._attn_implementation
    shared = ids(prefix, 1)
    with lent(model, NAME):
        slots = SlotModel(model, 3)
        if prefix:
            slots.share(shared)
        texts: list[list[int]] = []
        got: list[tuple[list[int], Tensor]] = []

        def add(length: int, seed: int) -> None:
            texts.append(shared + ids(length, seed))
            got.append((list(texts[-1]), slots.add(texts[-1][prefix:])[0]))

        def step(seed: int) -> None:
            tokens = ids(len(texts), seed)
            for text, token, row in zip(texts, tokens, slots.step(tokens), strict=True):
                text.append(token)
                got.append((list(text), row))

        add(4, 2)
        step(3)
        add(9, 4)
        add(1, 5)
        step(6)
        slots.drop(0)  # the third row moves
        texts[0] = texts.pop()
        step(7)
        add(6, 8)
        step(9)
        slots.drop(2)
        texts.pop()
        for number in range(6):
            step(10 + number)
    assert model.config._attn_implementation == before
    for text, logits in got:
        torch.testing.assert_close(logits, alone(model, text), rtol=1e-4, atol=1e-4)


# A row longer than the block of queries and the growth of the buffers, with every rule of attention.
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral, window"])
@torch.no_grad()
def test_long_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "GROWTH", 8)
    monkeypatch.setattr(slots_module, "QUERY_BLOCK", 16)
    model = copy.deepcopy(family(name))
    for prefix in (0, 20):
        text = ids(50 + prefix, 3)
        with lent(model, NAME):
            slots = SlotModel(model, 1)
            if prefix:
                slots.share(text[:prefix])
            first = slots.add(text[prefix:])[0]
            torch.testing.assert_close(first, _with(model, text), rtol=1e-4, atol=1e-4)
            for token in ids(12, 4):
                text.append(token)
                last = slots.step([token])[0]
            torch.testing.assert_close(last, _with(model, text), rtol=1e-4, atol=1e-4)


def _with(model: PreTrainedModel, text: list[int]) -> Tensor:
    model.set_attn_implementation("eager")
    logits = alone(model, text)
    model.set_attn_implementation("sengi_slots")
    return logits


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_are_supported(name: str) -> None:
    assert supports_slots(family(name))


# What keeps state elsewhere must be found out: its rows would be wrong without a word.
@torch.no_grad()
def test_other_families_are_found_out_and_run_alone() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=2)
    models: list[PreTrainedModel] = [MambaForCausalLM(config).eval()]
    models.append(small_model("BloomConfig", {"n_head": 4, "n_layer": 2}))
    models.append(small_model("GptOssConfig", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}))
    for model in models:
        assert not supports_slots(model)
        row, text = OneRow(model), ids(9, 1)
        torch.testing.assert_close(row.step(text)[0], alone(model, text), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(row.step([5])[0], alone(model, [*text, 5]), rtol=1e-4, atol=1e-4)


def test_ropes_that_change_with_length_have_a_limit() -> None:
    assert rope_limit(family("llama")) == float("inf")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert rope_limit(small_model("LlamaConfig", {"rope_parameters": rope})) == 128


# A mask or a missing store would give wrong texts silently.
def test_wrong_calls_are_refused() -> None:
    module, tensor = torch.nn.Linear(1, 1), torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="needs slots"):
        slot_attention(module, tensor, tensor, tensor, None)
    model = family("llama")
    slots = SlotModel(model, 1)._slots
    with pytest.raises(ValueError, match="got an attention_mask; it takes none"):
        slot_attention(module, tensor, tensor, tensor, torch.ones(1), slots=slots)
    with pytest.raises(ValueError, match=r"dropout 0\.1"):
        slot_attention(module, tensor, tensor, tensor, None, slots=slots, dropout=0.1)
    with pytest.raises(ValueError, match="s_aux is not supported"):
        slot_attention(module, tensor, tensor, tensor, None, slots=slots, s_aux=tensor)
    with pytest.raises(ValueError, match="Linear has no layer_idx"):
        slot_attention(module, tensor, tensor, tensor, None, slots=slots)
