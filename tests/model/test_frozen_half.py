"""The base of an adapter as it is stored: the same numbers as read in float32, at half the memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.families import FAMILIES, VOCAB, family, small_model
from tests.train.memory_run import random_samples, small_recipe
from transformers import PreTrainedModel

from sengi.data.packs import make_pack
from sengi.model import lora
from sengi.model.frozen_half import can_stay, computing_in_float32, looking_like_float32
from sengi.model.load import load_model
from sengi.model.supervised import SupervisedModel, prepare

peft = pytest.importorskip("peft")
HALF = torch.bfloat16
RECIPE = small_recipe(use_peft=True, lora_r=3, lora_alpha=6)
SCALED = {"gemma", "gemma2", "gemma3"}  # their embedding scale is a number of its own, rounded with the weights


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", {"state_size": 8}),  # takes the type of its head before it calls it; not packed
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
}


def stored(folder: Path, name: str, dtype: torch.dtype = HALF) -> Path:
    """A family's model in a folder, in half precision."""
    lm = small_model(*OTHERS[name]) if name in OTHERS else copy.deepcopy(family(name))
    lm.to(dtype).save_pretrained(folder)
    return folder


def with_adapter(folder: Path, dtype: torch.dtype) -> tuple[SupervisedModel, PreTrainedModel]:
    """As a run makes it, up to its first step."""
    lm = lora.load_frozen(folder, RECIPE, dtype)
    lora.add_adapter(lm, RECIPE)
    with computing_in_float32(lm):
        model = prepare(lm)
    lora.compute_in(lm, HALF)
    return model, lm


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_a_base_in_half_precision_is_the_one_that_was_read_in_float32(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(tmp_path, name)
    assert can_stay(folder, HALF) == (name not in SCALED)
    read = [p.dtype for p in lora.load_frozen(folder, RECIPE, HALF).parameters()]
    assert set(read) == {torch.float32 if name in SCALED else HALF}
    ours, lm = with_adapter(folder, HALF)
    monkeypatch.setattr(lora, "can_stay", lambda *_: False)
    theirs, whole = with_adapter(folder, HALF)
    assert ours.padding_free == theirs.padding_free == (name != "mamba")
    assert ours.probe_nll is not None
    assert theirs.probe_nll is not None
    assert torch.equal(ours.probe_nll, theirs.probe_nll)
    expected = dict(whole.state_dict(keep_vars=True)) | dict(whole.named_buffers())
    found = dict(lm.state_dict(keep_vars=True)) | dict(lm.named_buffers())
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert tensor.dtype == expected[key].dtype, key
        assert tensor.requires_grad == expected[key].requires_grad, key
        assert torch.equal(tensor, expected[key]), key
    pack = make_pack(random_samples(4, VOCAB, 12))
    with torch.autocast("cpu", HALF):
        losses = [model(pack, torch.ones(len(pack.targets)))[0] for model in (ours, theirs)]
    assert torch.equal(losses[0], losses[1])


def test_what_would_lose_numbers_is_read_in_float32(tmp_path: Path) -> None:
    folder = stored(tmp_path / "half", "llama")
    assert can_stay(folder, HALF)
    assert lora.stays_as_stored(folder, RECIPE, HALF)
    assert not lora.stays_as_stored(folder, small_recipe(), HALF)  # what is trained is float32
    assert not can_stay(folder, torch.float32)
    assert not can_stay(folder, torch.float16)
    assert not can_stay(stored(tmp_path / "float16", "llama", torch.float16), HALF)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, file, metadata={"format": "pt"})
    assert not can_stay(folder, HALF)
    assert {p.dtype for p in lora.load_frozen(folder, RECIPE, HALF).parameters()} == {torch.float32}


# Rule: one layer is wide at a time, else nothing is saved; what was widened is given back, after errors, too
def test_one_layer_at_a_time_computes_in_float32(tmp_path: Path) -> None:
    lm = load_model(stored(tmp_path, "llama, tied"), dtype=HALF)
    before = {name: p.data for name, p in lm.named_parameters()}
    seen: list[tuple[set[torch.dtype], set[torch.dtype]]] = []

    def look(*_: Any) -> None:
        seen.append(tuple({p.dtype for p in layer.parameters()} for layer in lm.model.layers))  # type: ignore[arg-type]

    hooks = [layer.mlp.register_forward_hook(look) for layer in lm.model.layers]
    ids = torch.arange(6)[None]
    with torch.no_grad(), computing_in_float32(lm):
        logits = lm(input_ids=ids).logits
    expected = load_model(tmp_path)(input_ids=ids).logits
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)
    assert seen == [({torch.float32}, {HALF}), ({HALF}, {torch.float32})]
    for hook in hooks:
        hook.remove()

    def fail(*_: Any) -> None:
        raise ValueError("as a family that takes no attention function")

    lm.model.layers[1].mlp.register_forward_hook(fail)
    with computing_in_float32(lm):
        with pytest.raises(ValueError, match="as a family"):
            lm(input_ids=ids)
        assert {p.dtype for p in lm.model.layers.parameters()} == {HALF}
    assert {p.dtype for p in lm.parameters()} == {HALF}
    assert all(p.data.data_ptr() == before[name].data_ptr() for name, p in lm.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.layers)


def test_weights_that_pass_for_float32_take_no_memory_and_come_back() -> None:
    lm = copy.deepcopy(family("llama")).to(HALF)
    before = {name: p.data for name, p in lm.named_parameters()}
    with looking_like_float32(lm):
        for name, p in lm.named_parameters():
            assert (p.dtype, p.shape) == (torch.float32, before[name].shape)
            assert p.untyped_storage().nbytes() == 4
    assert all(torch.equal(p.data, before[name]) for name, p in lm.named_parameters())
