"""LoRA layers in a model: nothing changes at first, only they learn, packing does not matter, peft reads the files."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.families import FAMILIES, VOCAB, family, small_model
from tests.model.tiny_folder import write_tiny_folder
from tests.train.memory_run import random_samples, small_recipe
from torch import Tensor, nn

from sengi.data.packs import make_pack
from sengi.errors import ModelError, RecipeError
from sengi.model import adapters, lora
from sengi.model.cost import model_cost
from sengi.model.load import load_model, load_tokenizer, model_fingerprint
from sengi.model.resolve import resolve_model
from sengi.model.supervised import SupervisedModel, prepare
from sengi.recipe import Recipe
from sengi.train.export import adapter_files, weight_files

peft = pytest.importorskip("peft")


def lora_recipe(**values: Any) -> Recipe:
    return small_recipe(**{"use_peft": True, "lora_r": 3, "lora_alpha": 6, **values})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("lora") / "base")


def trained(lm: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in lm.named_parameters() if p.requires_grad}


def fill(lm: nn.Module) -> None:
    """B away from zero, as after training."""
    torch.manual_seed(5)
    for name, parameter in trained(lm).items():
        if ".lora_B." in name:
            parameter.data = 0.2 * torch.randn_like(parameter)


def losses(model: SupervisedModel, packs: list[Any]) -> Tensor:
    """Sum of the losses of some packs; gradients are added up in the parameters."""
    total = torch.zeros(())
    for pack in packs:
        loss, _ = model(pack, torch.ones(len(pack.targets)))
        loss.backward()
        total += loss.detach()
    return total


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_on_every_family(name: str) -> None:
    samples = random_samples(6, VOCAB, 12)
    whole, alone = [make_pack(samples)], [make_pack([sample]) for sample in samples]
    plain = prepare(copy.deepcopy(family(name)))
    with torch.no_grad():
        before = plain(whole[0], torch.ones(len(whole[0].targets)))[0]
    lm = copy.deepcopy(family(name))
    lora.add_adapter(lm, lora_recipe())
    # every linear layer of every block has one; embedding and head have none
    inside = [n for n, m in family(name).named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert {n.rpartition(".lora_A")[0] for n in trained(lm) if ".lora_A" in n} == set(inside)
    model = prepare(lm)
    assert model.padding_free
    # B is zero: the first loss is the base's
    assert torch.equal(losses(model, whole), before)
    fill(lm)
    model.zero_grad()
    together = losses(model, whole)
    gradients = {n: p.grad.clone() for n, p in trained(lm).items() if p.grad is not None}
    model.zero_grad()
    assert losses(model, alone) == pytest.approx(float(together), rel=1e-5)
    assert abs(float(together) - float(before)) > 1e-2
    for n, p in trained(lm).items():
        torch.testing.assert_close(p.grad, gradients[n], rtol=1e-4, atol=1e-5)
    # nothing frozen has a gradient, the head's matrix included
    assert all(p.grad is None for p in lm.parameters() if not p.requires_grad)


def test_the_adapter_is_a_function_of_the_seed_alone(base: Path) -> None:
    def drawn(seed: int, before: int) -> dict[str, Tensor]:
        torch.manual_seed(before)
        lm = load_model(base)
        torch.randn(before)
        state = torch.get_rng_state()
        lora.add_adapter(lm, lora_recipe(seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        return {n: p.detach() for n, p in trained(lm).items()}

    one, two, other = drawn(1, 5), drawn(1, 9), drawn(2, 5)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert not any(torch.equal(one[n], other[n]) for n in one if ".lora_A." in n)
    assert all(not one[n].any() for n in one if ".lora_B." in n)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """A filled adapter as a run writes it."""
    recipe = lora_recipe(lora_target_modules=["v_proj", "down_proj"])
    lm = load_model(base)
    files = adapter_files(lora.add_adapter(lm, recipe), load_tokenizer(base), str(base), base)
    fill(lm)
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for name, pieces in weight_files(lm, {n: p.detach() for n, p in trained(lm).items()}):
        (folder / name).write_bytes(b"".join(pieces))
    return folder


def test_the_files_are_those_that_peft_writes(base: Path, adapter: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["down_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.0
    )
    theirs = peft.get_peft_model(load_model(base), config)
    theirs.save_pretrained(tmp_path / "peft")
    wanted, found = (json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path / "peft", adapter))
    wanted["target_modules"].sort()
    assert found == wanted | {"base_model_name_or_path": str(base)}
    shapes = {n: t.shape for n, t in load_file(tmp_path / "peft" / "adapter_model.safetensors").items()}
    assert {n: t.shape for n, t in load_file(adapter / "adapter_model.safetensors").items()} == shapes


def test_peft_transformers_and_we_read_the_same_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        wanted = peft.PeftModel.from_pretrained(load_model(base), str(adapter))(ids).logits
        loaded = load_model(base)
        loaded.load_adapter(str(adapter))
        assert torch.equal(loaded(ids).logits, wanted)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(adapter)(ids).logits, wanted)
        torch.testing.assert_close(load_model(adapter)(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        assert (load_model(base)(ids).logits - wanted).abs().max() > 0.1
    assert resolve_model(str(adapter)) == adapter
    assert load_tokenizer(adapter).get_vocab() == load_tokenizer(base).get_vocab()
    # an adapter of peft's own brings no tokenizer: its base's is taken
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "base_model.json"):
        (adapter / name).unlink()
    assert load_tokenizer(adapter).get_vocab() == load_tokenizer(base).get_vocab()
    names = {model_fingerprint(base), model_fingerprint(adapter)}
    save_file({n: t + 1 for n, t in load_file(adapter / adapters.WEIGHTS).items()}, adapter / adapters.WEIGHTS)
    assert len(names | {model_fingerprint(adapter)}) == 3


# Only its Python is needed, which runs without a GPU (docs/lora.md says how it was tried).
def test_vllm_reads_the_same_matrices(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft_helper = pytest.importorskip("vllm.lora.peft_helper", reason="needs vLLM", exc_type=ImportError)
    lora_model = pytest.importorskip("vllm.lora.lora_model", reason="needs vLLM", exc_type=ImportError)
    monkeypatch.setattr(lora_model, "PIN_MEMORY", torch.cuda.is_available())
    helper = peft_helper.PEFTHelper.from_local_dir(str(adapter), max_position_embeddings=512)
    assert not helper._validate_features()
    read = lora_model.LoRAModel.from_local_checkpoint(
        str(adapter), {"v_proj", "down_proj"}, helper, lora_model_id=1, device="cpu", dtype=torch.float32
    )
    plain, merged = load_model(base), load_model(adapter)
    assert len(read.loras) == 2 * plain.config.num_hidden_layers
    for name, layer in read.loras.items():
        change = merged.get_parameter(f"{name}.weight") - plain.get_parameter(f"{name}.weight")
        torch.testing.assert_close(layer.scaling * layer.lora_b @ layer.lora_a, change, rtol=1e-4, atol=1e-5)


def test_an_adapter_whose_base_is_gone_or_another_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(moved)}))
    assert load_model(adapter)  # a copy is the same base
    write_tiny_folder(moved, seed=1)
    names = f"fingerprint {model_fingerprint(base)[:12]}, but {moved} has {model_fingerprint(moved)[:12]}"
    for door in (load_model, model_fingerprint, lambda folder: resolve_model(str(folder))):
        with pytest.raises(ModelError, match=names):
            door(adapter)
    shutil.rmtree(moved)
    with pytest.raises(ModelError, match=r"the base of this adapter cannot be used: model .*moved': no folder"):
        load_model(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"megatron_config": {"a": 1}}))
    with pytest.raises(ModelError, match="'megatron_config' would run code"):
        load_model(adapter)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"lora_target_modules": ["q_proj", "qproj"]},
            "'qproj' is no linear layer of LlamaForCausalLM; there are down_",
        ),
        ({"lora_target_modules": ["lm_head"]}, "there are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_pr"),
        ({"lora_target_modules": ["embed_tokens"]}, "'embed_tokens' is no linear layer"),
    ],
)
def test_targets_that_match_nothing_name_what_there_is(base: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        lora.check_method(base, lora_recipe(**values))


def test_what_is_missing_is_named(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora.check_method(base, small_recipe())
    with pytest.raises(ModelError, match="holds an adapter; make a model of it and its base, 'sengi export"):
        lora.check_method(adapter, small_recipe())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"load_in_4bit: true needs bitsandbytes; pip install 'sengi\[qlora\]'"):
        lora.check_method(base, lora_recipe(load_in_4bit=True))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"use_peft: true needs peft; pip install 'sengi\[lora\]'"):
        lora.check_method(base, lora_recipe())


def test_frozen_matrices_in_the_type_they_are_multiplied_in_change_no_number(base: Path) -> None:
    pack = make_pack(random_samples(5, 300, 12))
    lm = load_model(base)
    lora.add_adapter(lm, lora_recipe())
    fill(lm)
    model = prepare(lm)
    found = []
    for cast in (False, True):
        if cast:
            lora.compute_in(lm, torch.bfloat16)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = model(pack, torch.ones(len(pack.targets)))
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in trained(lm).items()}))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][n], found[1][1][n]) for n in found[0][1])
    kinds = {n: p.dtype for n, p in lm.named_parameters()}
    assert kinds["model.layers.0.self_attn.q_proj.base_layer.weight"] == torch.bfloat16
    assert kinds["model.layers.0.self_attn.q_proj.lora_A.default.weight"] == torch.float32
    assert kinds["model.embed_tokens.weight"] == kinds["model.norm.weight"] == torch.float32


# W x: 2 operations forward and 2 backward a weight; A and B: 6 each
def test_the_cost_of_an_adapter(base: Path) -> None:
    whole = model_cost(load_model(base))
    for lm in (load_model(base), lora.skeleton(base)):
        lora.add_adapter(lm, lora_recipe())
        cost = model_cost(lm)
        adapter = sum(p.numel() for p in trained(lm).values())
        assert (cost.parameters, cost.linear, cost.head) == (whole.parameters, whole.linear, whole.head)
        assert (cost.adapter, cost.trained, whole.trained) == (adapter, adapter, whole.parameters)
        assert cost.flops(10, 4, 0.0) == 4 * (10 * whole.linear + 4 * whole.head) + 6 * 10 * adapter


def dequantized(lm: nn.Module) -> nn.Module:
    """The same model with plain layers of the numbers that the 4-bit ones stand for."""
    from bitsandbytes.functional import dequantize_4bit

    plain = copy.deepcopy(lm)
    for name, module in lm.named_modules():
        if name.endswith("base_layer"):
            layer = nn.Linear(module.in_features, module.out_features, bias=False)
            layer.weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            plain.set_submodule(name, layer.requires_grad_(False))
    return plain


def test_a_4_bit_base_learns_as_its_numbers_say(base: Path) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = lora_recipe(load_in_4bit=True)
    with warnings.catch_warnings(action="ignore"):
        lm = lora.load_frozen(base, recipe, torch.float32)
        lora.add_adapter(lm, recipe)
    fill(lm)
    plain = prepare(dequantized(lm))
    model = prepare(lm)
    layers = [module for name, module in lm.named_modules() if name.endswith("base_layer")]
    assert {type(layer).__name__ for layer in layers} == {"Linear4bit"}
    assert len(layers) == 14
    assert type(lm.lm_head) is nn.Linear
    assert {layer.weight for layer in layers} == lora.whole_on_every_rank(model)
    # repacked for a product without gradients, they would stop learning after the first evaluation
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    pack = make_pack(random_samples(5, 300, 12))
    found = []
    for net in (model, plain):
        with torch.no_grad():
            net(pack, torch.ones(len(pack.targets)))
        found.append(losses(net, [pack]))
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-4)
    wanted = {n: p.grad for n, p in trained(plain.lm).items()}
    for n, p in trained(lm).items():
        torch.testing.assert_close(p.grad, wanted[n], rtol=1e-3, atol=1e-4)
    # 4 bits are near the whole weights, but not the same
    with torch.no_grad():
        whole = prepare(load_model(base))(pack, torch.ones(len(pack.targets)))[0]
    assert 1e-4 < abs(float(whole) / float(found[0]) - 1) < 0.5
    # quantized again it is the same, bit for bit: a run that is continued has the same base
    again = lora.load_frozen(base, recipe, torch.float32)
    lora.add_adapter(again, recipe)
    state = dict(again.named_parameters())
    assert all(torch.equal(p, state[n]) for n, p in lm.named_parameters() if not p.requires_grad)


def test_a_model_without_linear_layers_is_refused() -> None:
    lm = small_model("LlamaConfig", {"num_hidden_layers": 1})
    lm.model.layers = nn.ModuleList()
    with pytest.raises(RecipeError, match="LlamaForCausalLM has no linear layers"):
        lora.add_adapter(lm, lora_recipe())
