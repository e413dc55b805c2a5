from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.model.families import FAMILIES, VOCAB, WINDOW, family, small_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedModel

from sengi.conversation import Sample
from sengi.data.packs import make_pack
from sengi.errors import ModelError
from sengi.model import attention
from sengi.model import supervised as module
from sengi.model.attention import generation_mode
from sengi.model.supervised import SupervisedModel, prepare, try_on_device

STATE_SPACE = {
    "mamba": ("MambaConfig", {"state_size": 4, "time_step_rank": 4}),
    "bamba": (
        "BambaConfig",  # state-space layers beside an attention layer
        {
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_expand": 2,
            "mamba_chunk_size": 8,
        },
    ),
}


@cache
def prepared(name: str) -> SupervisedModel:
    return prepare(copy.deepcopy(family(name)))


@cache
def eager(name: str) -> PreTrainedModel:
    """The reference: transformers' own plain attention, which has a dense mask, windows and soft caps."""
    lm = copy.deepcopy(family(name))
    lm.set_attn_implementation("eager")
    return lm


@st.composite
def documents(draw: st.DrawFn) -> list[Sample]:
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=5))
    ids = st.integers(3, VOCAB - 1)
    return [
        Sample(
            np.array(draw(st.lists(ids, min_size=n, max_size=n)), np.int32),
            np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), np.uint8),
        )
        for n in lengths
    ]


def some_documents(lengths: tuple[int, ...] = (7, 1, 12, 3, 9), seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [Sample(rng.integers(3, VOCAB, n).astype(np.int32), (rng.random(n) < 0.7).astype(np.uint8)) for n in lengths]


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_by_one(lm: PreTrainedModel, samples: list[Sample], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients from the model's own logits of one document at a time, with torch's cross-entropy."""
    lm.zero_grad()
    loss, used = torch.zeros(()), 0
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        logits = lm(input_ids=ids, use_cache=False).logits[0, :-1].float()
        nll = cross_entropy(logits, ids[0, 1:], reduction="none")
        nll = nll[torch.from_numpy(sample.loss_mask[1:]) == 1]
        loss = loss + (nll * weights[used : used + len(nll)]).sum()
        used += len(nll)
    assert used == len(weights)
    if loss.requires_grad:
        loss.backward()
    return loss.detach(), gradients(lm)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, wanted in theirs.items():
        difference = (ours[f"lm.{name}"] - wanted).abs().max()
        assert difference <= 1e-5 * max(1.0, float(wanted.abs().max())), f"{name}: {difference:.2g}"


def check_packed_equals_one_by_one(model: SupervisedModel, reference: PreTrainedModel, samples: list[Sample]) -> None:
    pack = make_pack(samples)
    weights = torch.linspace(0.5, 1.5, len(pack.targets)) / max(1, len(pack.targets))
    model.zero_grad()
    loss, nll = model(pack, weights)
    loss.backward()
    expected, theirs = one_by_one(reference, samples, weights)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
    assert float((nll * weights).sum()) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
    assert_same(gradients(model), theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_packs(name: str) -> None:
    model = prepared(name)
    assert model.padding_free
    check_packed_equals_one_by_one(model, eager(name), some_documents())


# Rule: attention computes in the type of the run. Positions in float32 lift queries and keys out of autocast, and a
# kernel that autocast does not know (torch's variable-length one) would get two types, or not be taken at all.
@pytest.mark.parametrize("name", ["llama", "granite", "gemma3", "phi3, window", "qwen3"])
def test_attention_computes_in_the_type_of_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[torch.dtype]] = {"attend_short": set(), "attend_long": set()}

    def spied(kind: str, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def spy(*arguments: Any) -> Tensor:
            seen[kind].update(tensor.dtype for tensor in arguments[:3])
            return real(*arguments)

        return spy

    for kind in seen:
        monkeypatch.setattr(attention, kind, spied(kind, getattr(attention, kind)))
    pack, model = make_pack(some_documents()), prepared(name)
    with torch.autocast("cpu", torch.bfloat16):
        model(pack, torch.ones(len(pack.targets)))
        monkeypatch.setattr(attention, "LONGEST", 1)
        model(pack, torch.ones(len(pack.targets)))
    assert seen == {"attend_short": {torch.bfloat16}, "attend_long": {torch.bfloat16}}


@settings(max_examples=60)
@given(st.sampled_from(sorted(FAMILIES)), documents())
@example("mistral, window", some_documents((WINDOW, WINDOW + 1, 3 * WINDOW)))
@example("llama", some_documents((1, 1, 1)))  # nothing to learn at all
def test_packed_equals_one_by_one(name: str, samples: list[Sample]) -> None:
    check_packed_equals_one_by_one(prepared(name), eager(name), samples)


def begin_alike(samples: list[Sample], tokens: int = 6) -> list[Sample]:
    """The same samples behind a beginning in common that nothing is learned of."""
    rng = np.random.default_rng(7)
    front = rng.integers(3, VOCAB, tokens).astype(np.int32)
    return [
        Sample(np.concatenate([front, s.input_ids]), np.concatenate([np.zeros(tokens, np.uint8), s.loss_mask]))
        for s in samples
    ]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_lean_pack_has_the_loss_and_the_gradients_of_a_whole_one(name: str) -> None:
    model = prepared(name)
    samples = begin_alike(some_documents((7, 1, 12, 3, 3 * WINDOW)))
    found = []
    for lean in (False, True):
        pack = make_pack(samples, lean)
        assert (pack.shared >= 5) == lean  # one more where no first token behind it is a target
        model.zero_grad()
        loss, nll = model(pack, torch.linspace(0.5, 1.5, len(pack.targets)))
        loss.backward()
        found.append((loss.detach(), nll, gradients(model)))
    (loss, nll, grads), (lean_loss, lean_nll, lean_grads) = found
    torch.testing.assert_close(lean_loss, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lean_nll, nll, rtol=1e-4, atol=1e-5)
    assert lean_grads.keys() == grads.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(lean_grads[key], grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()) + 1e-7)


@settings(max_examples=40)
@given(st.sampled_from(sorted(FAMILIES)), documents(), st.data())
def test_changing_a_document_never_changes_another(name: str, samples: list[Sample], data: st.DataObject) -> None:
    # same lengths, so even the rounding must not move: equal bit by bit
    changed = data.draw(st.integers(0, len(samples) - 1))
    other = list(samples)
    ids = samples[changed].input_ids
    other[changed] = Sample(((ids - 3 + 101) % (VOCAB - 3) + 3).astype(np.int32), samples[changed].loss_mask)
    model = prepared(name)
    with torch.no_grad():
        head = model.lm.get_output_embeddings()
        before, after = (head(model.hidden_states(make_pack(s))) for s in (samples, other))
    bounds = make_pack(samples).bounds.tolist()
    for number, (a, b) in enumerate(itertools.pairwise(bounds)):
        assert torch.equal(before[a:b], after[a:b]) == (number != changed)


def test_order_of_documents_in_a_pack_does_not_matter() -> None:
    samples = some_documents()
    model = prepared("gemma3")
    with torch.no_grad():
        _, one = model(pack := make_pack(samples), torch.ones(len(pack.targets)))
        _, two = model(back := make_pack(samples[::-1]), torch.ones(len(back.targets)))
    for number in range(len(samples)):
        mine, other = one[pack.document == number], two[back.document == len(samples) - 1 - number]
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STATE_SPACE)
@pytest.mark.parametrize("scale", [0.02, 0.3])
def test_layers_that_carry_state_run_one_document_a_call(name: str, scale: float) -> None:
    # also where the weights are so small that the leak hardly shows in the loss
    config, values = STATE_SPACE[name]
    lm = small_model(config, values | {"initializer_range": scale})
    reference = copy.deepcopy(lm)
    model = prepare(lm)
    assert not model.padding_free
    check_packed_equals_one_by_one(model, reference, some_documents())


def test_families_without_an_attention_function_run_one_document_a_call() -> None:
    lm = small_model("BloomConfig", {"n_head": 4, "n_layer": 2})
    reference = copy.deepcopy(lm)
    model = prepare(lm)
    assert not model.padding_free
    check_packed_equals_one_by_one(model, reference, some_documents())


def test_a_family_that_would_compute_lean_packs_differently_runs_one_document_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_lean_and_whole", lambda model: (torch.zeros(2), torch.ones(2)))
    model = prepare(copy.deepcopy(family("llama")))
    assert not model.padding_free
    check_packed_equals_one_by_one(model, eager("llama"), some_documents())


CPU = torch.device("cpu")


# Rule: what was proved as the model was loaded holds where and as it is trained, or the run does not begin.
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_tried_where_it_is_trained(name: str, autocast: torch.dtype | None) -> None:
    try_on_device(prepared(name), CPU, autocast)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_device_that_computes_something_else_is_refused(autocast: torch.dtype | None) -> None:
    model = prepare(copy.deepcopy(family("llama")))
    with torch.no_grad():
        model.lm.model.norm.weight.mul_(3)  # as a wrong kernel would
    words = r"LlamaForCausalLM: its losses on cpu in torch.* are not those of the model as it was loaded \(largest"
    with pytest.raises(ModelError, match=words):
        try_on_device(model, CPU, autocast)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_kernel_that_lets_documents_reach_each_other_is_refused(
    monkeypatch: pytest.MonkeyPatch, autocast: torch.dtype | None
) -> None:
    model = prepare(copy.deepcopy(family("llama")))
    attend = attention.attend

    def leaking(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> Tensor:
        return attend(query, key, value, *options) + 0.001 * value.float().mean()

    monkeypatch.setattr(attention, "attend", leaking)
    with pytest.raises(ModelError, match=r"documents of a pack reach each other in torch.*float.* on cpu; "):
        try_on_device(model, CPU, autocast)


class OddLlama(LlamaForCausalLM):
    """A family whose logits follow a rule that no config key names."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.3 + output.logits.sin()
        return output


def test_a_model_with_an_unknown_logit_rule_is_refused_by_name() -> None:
    lm = OddLlama(family("llama").config).eval()
    with pytest.raises(ModelError, match=r"OddLlama: its logits are not output_embeddings\(last_hidden_state\)"):
        prepare(lm)


def test_a_model_with_damaged_weights_is_refused() -> None:
    lm = copy.deepcopy(family("llama"))
    with torch.no_grad():
        lm.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="LlamaForCausalLM: the loss of a short text is not finite"):
        prepare(lm)


@pytest.fixture
def llama() -> SupervisedModel:
    return prepare(copy.deepcopy(family("llama")))


def test_a_mask_a_cache_or_no_bounds_raise(llama: SupervisedModel) -> None:
    ids = torch.arange(3, 11)[None]
    bounds = {"cu_seq_lens_q": torch.tensor([0, 3, 8], dtype=torch.int32), "max_length_q": 5}
    ones = torch.ones_like(ids)
    for call in (llama.lm, llama.lm.get_decoder()):
        with pytest.raises(ValueError, match=r"no attention_mask .*a mask of ones leaks across documents"):
            call(input_ids=ids, attention_mask=ones, use_cache=False, **bounds)
        with pytest.raises(ValueError, match=r"takes no KV cache in training \(a cache leaks"):
            call(input_ids=ids, use_cache=True, **bounds)
        with pytest.raises(ValueError, match="needs cu_seq_lens_q; for a single text use generation_mode"):
            call(input_ids=ids, use_cache=False)
    from transformers import DynamicCache

    with pytest.raises(ValueError, match="takes no KV cache"):
        llama.lm(input_ids=ids, past_key_values=DynamicCache(config=llama.lm.config), use_cache=False, **bounds)
    # positions in the signature are no way around it
    with pytest.raises(ValueError, match="attention_mask"):
        llama.lm.get_decoder()(ids, ones, use_cache=False, **bounds)
    # with the bounds alone it runs
    llama.lm(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]), use_cache=False, **bounds)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_generation_mode_lends_the_model_and_takes_it_back(name: str) -> None:
    lm = copy.deepcopy(family(name))
    before = copy.deepcopy(lm)
    model = prepare(lm)
    ids = torch.arange(3, 9)[None]
    with generation_mode(lm) as lent, torch.no_grad():
        ours = lent.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        theirs = before.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert ours.tolist() == theirs.tolist()
    # afterwards it is guarded again, and right
    with pytest.raises(ValueError, match="attention_mask"):
        lm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    check_packed_equals_one_by_one(model, eager(name), some_documents())


def test_generation_mode_gives_the_guard_back_after_an_error(llama: SupervisedModel) -> None:
    with pytest.raises(KeyError), generation_mode(llama.lm):
        raise KeyError
    with pytest.raises(ValueError, match="needs cu_seq_lens_q"):
        llama.lm(input_ids=torch.ones(1, 4, dtype=torch.int64), use_cache=False)


def test_dropout_is_off_and_cannot_be_turned_on(llama: SupervisedModel) -> None:
    assert not llama.lm.training
    lm = small_model("LlamaConfig", {"attention_dropout": 0.5})
    model = prepare(lm)
    check_packed_equals_one_by_one(model, small_model("LlamaConfig", {}), some_documents())
    lm.train()
    pack = make_pack(some_documents())
    with pytest.raises(ValueError, match=r"attention dropout 0\.5 would make the result depend on the packing"):
        model(pack, torch.ones(len(pack.targets)))


def test_a_pack_without_targets_gives_zero_loss_and_zero_gradients(llama: SupervisedModel) -> None:
    # a rank with nothing to do takes part in the step like this
    loss, nll = llama(make_pack([]), torch.ones(0))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert len(nll) == 0
    assert all(p.grad is not None and not p.grad.any() for p in llama.parameters())
