from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_folder import write_tiny_folder
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sengi.errors import ModelError
from sengi.model.inspect import inspect_model_folder, inspect_tokenizer_files
from sengi.model.load import load_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("inspect") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def change(folder: Path, name: str = "config.json", **keys: object) -> None:
    config = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**config, **keys}))


def test_a_folder_that_transformers_saved_passes_without_a_word(folder: Path) -> None:
    assert inspect_model_folder(folder) == []


@pytest.mark.parametrize(
    "model_type", ["llama", "granite", "mistral", "phi3", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "olmo2"]
)
def test_every_default_config_of_a_tested_family_passes(folder: Path, model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()
    config.save_pretrained(folder)
    assert inspect_model_folder(folder) == []


def test_keys_that_older_versions_and_other_tools_write_pass(folder: Path) -> None:
    # These stand in configs of well-known models on the hub.
    extra = {
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "_name_or_path": "/fsx/someone/model",
        "torch_dtype": "bfloat16",
        "_attn_implementation_autoset": True,
        "quantization_config": None,
        "temperature": 0.6,
    }
    change(folder, **extra)
    assert inspect_model_folder(folder) == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"auto_map": {"AutoConfig": "configuration_evil.Evil"}}, "'auto_map' would fetch or run code"),
        ({"text_config": {"trust_remote_code": True}}, "'trust_remote_code' would fetch or run code"),
        ({"id2label": {"a": [{"custom_generate": "x"}]}}, "'custom_generate' would fetch or run code"),
        ({"_attn_implementation_internal": "x"}, "'_attn_implementation_internal' would fetch or run code"),
        ({"kernel_config": {"a": "b"}}, "'kernel_config' would fetch or run code"),
        ({"attn_implementation": "someone/flash-kernel"}, "would download the kernel 'someone/flash-kernel'"),
        ({"attn_implementation": {"": "someone/kernel"}}, "would download the kernel"),
        ({"experts_implementation": ["a/b"]}, "would download the kernel"),
        ({"dtype": "load"}, "dtype: 'load' is not a float type"),
        ({"architectures": ["modeling_evil.py"]}, "names a program"),
        ({"_something": 1}, "'_something' is not one that a 'llama' model has"),
        ({"loader": {"path": 1}}, "'loader' is not one that a 'llama' model has"),
        ({"weights": "/etc/passwd"}, "'weights' is not one that a 'llama' model has"),
        ({"sources": ["https://example.org/x"]}, "'sources' is not one"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantized"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": "bert_generation_x_y"}, "is no causal language model"),
        ({"model_type": None}, "no model_type"),
    ],
)
def test_what_could_steer_loading_is_refused_by_name(folder: Path, keys: dict[str, object], words: str) -> None:
    change(folder, **keys)
    with pytest.raises(ModelError, match=words) as caught:
        inspect_model_folder(folder)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)


def test_unknown_scalars_are_reported_not_refused(folder: Path) -> None:
    change(folder, favourite_colour="blue", depth_of_thought=3, list_of_numbers=[1, 2])
    warnings = inspect_model_folder(folder)
    assert [w.split("'")[1] for w in warnings] == ["favourite_colour", "depth_of_thought", "list_of_numbers"]


def test_code_of_the_author_passes_only_on_request(folder: Path) -> None:
    change(folder, auto_map={"AutoConfig": "configuration_evil.Evil"})
    assert "auto_map" in inspect_model_folder(folder, trust_remote_code=True)[0]


def test_code_beside_the_model_is_never_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (folder / "configuration_evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    change(folder, auto_map={"AutoConfig": "configuration_evil.Evil"}, model_type="evil")
    with pytest.raises(ModelError, match="auto_map"):
        load_model(folder)
    assert not marker.exists()


def test_scripts_without_a_key_that_names_them_are_reported(folder: Path) -> None:
    (folder / "train.py").write_text("print()")
    assert "train.py will not be run" in inspect_model_folder(folder)[0]


def test_tokenizer_and_generation_configs_are_guarded_too(folder: Path) -> None:
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Evil", None]})
    with pytest.raises(ModelError, match=r"tokenizer_config.json: key 'auto_map'"):
        inspect_tokenizer_files(folder)
    inspect_tokenizer_files(folder, trust_remote_code=True)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl"])
def test_pickles_are_refused_with_the_cure(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=f"{name} is a pickle.*convert it to safetensors"):
        inspect_model_folder(folder)


def test_a_pickle_beside_safetensors_is_left_alone_and_said(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert inspect_model_folder(folder) == [f"{folder}: pytorch_model.bin is not read, the safetensors are"]


def test_missing_and_broken_files_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=f"{len(whole) - 100:,} bytes where {len(whole):,} were written"):
        inspect_model_folder(folder)
    weights.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(ModelError, match="not a safetensors file"):
        inspect_model_folder(folder)
    weights.write_bytes(b"")
    with pytest.raises(ModelError, match="not a safetensors file"):
        inspect_model_folder(folder)
    weights.write_bytes((10).to_bytes(8, "little") + b"{not json}")
    with pytest.raises(ModelError, match="header cannot be read"):
        inspect_model_folder(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        inspect_model_folder(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="not JSON"):
        inspect_model_folder(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="a JSON object is needed"):
        inspect_model_folder(folder)
    (folder / "config.json").write_bytes(b" " * (5 * 2**20))
    with pytest.raises(ModelError, match="5,242,880 bytes, more than"):
        inspect_model_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config.json: missing"):
        inspect_model_folder(folder)
    with pytest.raises(ModelError, match="not a folder"):
        inspect_model_folder(folder / "nothing")


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "../outside.safetensors"}, "not a safetensors file of this folder"),
        ({"a": "/etc/x.safetensors"}, "not a safetensors file of this folder"),
        ({"a": "model.bin"}, "not a safetensors file of this folder"),
        ({"a": "model-00001-of-00002.safetensors"}, "missing, though"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_stays_inside_its_folder(folder: Path, weight_map: dict[str, str], words: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=words):
        inspect_model_folder(folder)


def test_adapters_must_be_merged_first(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="merge it into its base model first"):
        inspect_model_folder(folder)
