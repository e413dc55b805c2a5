"""A LoRA adapter on its base scores as peft's own model does; what does not fit is refused."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.harness.requests import plain_loglikelihood, scored, written
from tests.model.tiny_folder import tiny_model, tiny_tokenizer, write_tiny_folder

from sengi.errors import ModelError
from sengi.harness.lm import SengiLM
from sengi.harness.loading import load_for_scoring
from sengi.inference.generation import Generator
from sengi.inference.loglikelihood import Scorer
from sengi.model.load import load_model
from sengi.model.tokenizer_files import save_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("lora") / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(load_model(base), config).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
    return tmp_path / "adapter"


def quiet(done: int, total: int, kind: str) -> None:
    """No progress bar."""


def test_an_adapter_scores_as_in_peft(base: Path, adapter: Path, tmp_path: Path) -> None:
    import peft

    reference = peft.PeftModel.from_pretrained(load_model(base), str(adapter)).eval()
    # by itself, and put on a base by name
    for options in ({"pretrained": adapter}, {"pretrained": str(base), "peft": str(adapter)}):
        lm = SengiLM(**options, device="cpu", cache=tmp_path / "cache", progress=quiet)
        [(total, _)] = lm.loglikelihood(scored(("The capital of", " France")))
        expected = plain_loglikelihood(reference, lm.tok_encode("The capital of"), lm.tok_encode(" France"))
        assert total == pytest.approx(expected[0], abs=1e-4)
    # the base alone is another model, to the cache too
    [(alone, _)] = SengiLM(base, device="cpu", cache=tmp_path / "cache", progress=quiet).loglikelihood(
        scored(("The capital of", " France"))
    )
    assert abs(alone - total) > 1e-3


@pytest.fixture
def small_change(tmp_path: Path) -> Path:
    """An adapter on a base in bfloat16, most of whose changes are below half a unit in the last place of a weight."""
    peft = pytest.importorskip("peft")
    tokenizer = tiny_tokenizer()
    base = tiny_model(len(tokenizer)).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    save_tokenizer(tokenizer, tmp_path / "base")
    torch.manual_seed(1)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            parameter.data *= 1e-3
    adapted.save_pretrained(tmp_path / "small")
    path = tmp_path / "small" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}))
    return tmp_path / "small"


# On a GPU models are benchmarked in the type they are stored in: the sum with a small change would round it away.
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_adapter_is_not_rounded_away(dtype: str, small_change: Path) -> None:
    loaded = load_for_scoring(small_change, dtype=dtype, device="cpu").model
    assert loaded.dtype == getattr(torch, dtype)
    ids = torch.arange(5, 200)[None]
    with torch.no_grad():
        merged, alone = (
            load_model(f, dtype=torch.float32)(ids).logits for f in (small_change, small_change / "../base")
        )
        found = copy.deepcopy(loaded).float()(ids).logits  # its weights, without the rounding of its arithmetic
    assert (found - merged).norm() < 1e-3 * (alone - merged).norm()


def test_an_adapter_beside_its_base_shares_what_a_merged_one_shares(small_change: Path, tmp_path: Path) -> None:
    options = {"device": "cpu", "cache": tmp_path / "cache", "progress": quiet}
    loaded = load_for_scoring(small_change, dtype="bfloat16", device="cpu")
    assert Scorer(loaded.model).shares_prefixes
    assert Generator(loaded.model, loaded.tokenizer).shares_steps
    lm = SengiLM(small_change, dtype="bfloat16", **options)
    requests = scored(("The capital of", " France"), ("The capital of", " Italy"))
    found = [total for total, _ in lm.loglikelihood(requests)]
    exact = [total for total, _ in SengiLM(small_change, **options).loglikelihood(requests)]
    assert found == pytest.approx(exact, rel=0.02)
    assert len(lm.generate_until(written("The capital of", "The capital", until=["\n"], max_gen_toks=4))) == 2
    weights = load_file(small_change / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, small_change / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="tensors of the adapter and its base do not match"):
        load_for_scoring(small_change, dtype="bfloat16", device="cpu")


def test_an_adapter_that_does_not_fit_is_refused(adapter: Path) -> None:
    # peft would fill the missing tensor with zeros
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="1 tensors of the adapter and its base do not match, first base_model"):
        SengiLM(adapter, device="cpu")


def write_adapter(folder: Path, config: object, weights: str = "adapter_model.safetensors") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    save_file({"a": torch.zeros(1)}, folder / weights)
    return folder


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ("{", "adapter_model.safetensors", "adapter_config.json: not JSON"),
        ({"peft_type": "LORA"}, "adapter_model.safetensors", "base_model_name_or_path is missing; name the base with"),
        ({"peft_type": "IA3"}, "adapter_model.safetensors", "peft_type is 'IA3'; only LORA adapters are loaded"),
        ({"peft_type": "LORA"}, "adapter_model.bin", "no adapter_model.safetensors; adapter_model.bin is a pickle"),
    ],
)
def test_bad_adapters_are_refused(tmp_path: Path, config: object, weights: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        SengiLM(write_adapter(tmp_path / "adapter", config, weights), device="cpu")


def test_without_peft_it_says_so(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    with pytest.raises(ModelError, match=r"needs peft; pip install 'sengi\[lora\]', or merge it into its base"):
        SengiLM(write_adapter(tmp_path / "adapter", config), device="cpu")
