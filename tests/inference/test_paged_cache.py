from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.model.families import FAMILIES, VOCAB, family, small_model
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from sengi.inference import paged_cache, paged_model
from sengi.inference.lent_model import lent, rope_limit
from sengi.inference.paged_cache import PagedCache
from sengi.inference.paged_model import NAME, PagedModel, paged_attention
from sengi.inference.paged_support import OneRow, supports_paging


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
        paged = PagedModel(model, 4, shared)
        texts: list[list[int]] = []
        got: list[tuple[list[int], Tensor]] = []

        def add(length: int, seed: int) -> None:
            texts.append(shared + ids(length, seed))
            got.append((list(texts[-1]), paged.add(texts[-1][prefix:])[0]))

        def step(seed: int) -> None:
            tokens = ids(len(texts), seed)
            for text, token, row in zip(texts, tokens, paged.step(tokens), strict=True):
                text.append(token)
                got.append((list(text), row))

        add(4, 2)
        step(3)
        add(9, 4)
        add(1, 5)
        step(6)
        paged.cache.drop(0)  # the third row moves
        texts[0] = texts.pop()
        step(7)
        add(6, 8)
        step(9)
        paged.cache.drop(2)
        texts.pop()
        for number in range(6):
            step(10 + number)
    assert model.config._attn_implementation == before
    for text, logits in got:
        torch.testing.assert_close(logits, alone(model, text), rtol=1e-4, atol=1e-4)


# Blocks come from memory that may hold anything; what is behind a row's end must not get into it.
@torch.no_grad()
def test_what_memory_held_before_has_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *shape: self.new_full(shape, float("nan")))
    model, texts = family("llama"), [ids(3, 1), ids(40, 2)]
    with lent(model, NAME):
        paged = PagedModel(model, 5, ids(2, 3))
        for text in texts:
            paged.add(text)
        logits = paged.step([5, 6])
    for text, last, row in zip(texts, [5, 6], logits, strict=True):
        torch.testing.assert_close(row, alone(model, [*ids(2, 3), *text, last]), rtol=1e-4, atol=1e-4)


def test_rows_take_blocks_as_they_grow_and_give_them_back() -> None:
    cache = PagedCache(3, 0, torch.device("cpu"))

    def call(kind: str, tokens: int) -> None:
        cache.enter(kind, tokens)
        cache.leave()

    cache.add()
    call("row", 10)
    cache.add()
    call("row", 10)
    call("row", 6)  # its second piece fills the block
    assert cache.lengths == [10, 16]
    assert cache.can_step()
    call("step", 1)  # the third block
    assert cache.lengths == [11, 17]
    for _ in range(5):
        assert cache.can_step()
        call("step", 1)
    assert cache.lengths == [16, 22]
    assert not cache.can_step()
    cache.drop(0)
    assert cache.lengths == [22]
    for _ in range(26):
        assert cache.can_step()
        call("step", 1)
    assert not cache.can_step()


# A row longer than a piece, the block of queries and a block of the cache, with every rule of attention.
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral, window"])
@torch.no_grad()
def test_long_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_model, "CPU_TOKENS", 24)
    monkeypatch.setattr(paged_cache, "QUERY_BLOCK", 16)
    model = copy.deepcopy(family(name))
    for prefix in (0, 20):
        text = ids(50 + prefix, 3)
        with lent(model, NAME):
            paged = PagedModel(model, 4, text[:prefix])
            first = paged.add(text[prefix:])[0]
            torch.testing.assert_close(first, _with(model, text), rtol=1e-4, atol=1e-4)
            for token in ids(12, 4):
                text.append(token)
                last = paged.step([token])[0]
            torch.testing.assert_close(last, _with(model, text), rtol=1e-4, atol=1e-4)


def _with(model: PreTrainedModel, text: list[int]) -> Tensor:
    model.set_attn_implementation("eager")
    logits = alone(model, text)
    model.set_attn_implementation(NAME)
    return logits


# Rows are computed with those of similar length: a long one does not make the short ones long.
@torch.no_grad()
def test_rows_of_all_lengths_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []
    part = PagedCache._step_part

    def counted(self: PagedCache, layer: int, number: int, *rest: Any) -> Tensor:
        if not layer:
            gathered.append(paged_cache.BLOCK * self._parts[number][1].numel())
        return part(self, layer, number, *rest)

    monkeypatch.setattr(PagedCache, "_step_part", counted)
    for name in ("llama", "gemma2", "mistral, window"):
        model, texts = family(name), [ids(n, n) for n in (3, 200, 17, 40, 100, 5)]
        gathered.clear()
        with lent(model, NAME):
            paged = PagedModel(model, 30, ids(2, 3))
            for text in texts:
                paged.add(text)
            logits = paged.step(list(range(5, 11)))
        for text, last, row in zip(texts, range(5, 11), logits, strict=True):
            torch.testing.assert_close(row, alone(model, [*ids(2, 3), *text, last]), rtol=1e-4, atol=1e-4)
        assert sum(gathered) < 2 * paged_cache.BLOCK * 30


# DeepSeek's values have another head size than its keys.
def test_values_of_another_size() -> None:
    sizes = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 8, "q_lora_rank": 8}
    experts = {"first_k_dense_replace": 9, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1}
    values = {**sizes, **experts, "topk_group": 1, "num_key_value_heads": 4}
    assert supports_paging(small_model("DeepseekV3Config", values))


# Products that float16 cannot hold before they are scaled; and what is NaN agrees with nothing.
def test_large_products_in_half_precision() -> None:
    model = copy.deepcopy(family("qwen2, window"))
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data *= 60
    assert supports_paging(model.half())
    model.get_parameter("model.norm.weight").data[0] = float("nan")
    assert not supports_paging(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_are_supported(name: str) -> None:
    assert supports_paging(family(name))


# What keeps state elsewhere must be found out: its rows would be wrong without a word.
@torch.no_grad()
def test_other_families_are_found_out_and_run_alone() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=2)
    models: list[PreTrainedModel] = [MambaForCausalLM(config).eval()]
    models.append(small_model("BloomConfig", {"n_head": 4, "n_layer": 2}))
    models.append(small_model("GptOssConfig", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}))
    for model in models:
        assert not supports_paging(model)
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
    with pytest.raises(ValueError, match="needs one"):
        paged_attention(module, tensor, tensor, tensor, None)
    model = family("llama")
    cache = PagedModel(model, 1, []).cache
    with pytest.raises(ValueError, match="got an attention_mask; it takes none"):
        paged_attention(module, tensor, tensor, tensor, torch.ones(1), paged_cache=cache)
    with pytest.raises(ValueError, match=r"dropout 0\.1"):
        paged_attention(module, tensor, tensor, tensor, None, paged_cache=cache, dropout=0.1)
    with pytest.raises(ValueError, match="s_aux is not supported"):
        paged_attention(module, tensor, tensor, tensor, None, paged_cache=cache, s_aux=tensor)
    with pytest.raises(ValueError, match="Linear has no layer_idx"):
        paged_attention(module, tensor, tensor, tensor, None, paged_cache=cache)
