from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folder import CHATML, tiny_model, tiny_tokenizer, write_tiny_folder
from transformers import AutoTokenizer

from sengi.errors import ModelError
from sengi.model import load
from sengi.model.load import load_model, load_tokenizer, model_fingerprint
from sengi.model.tokenizer_files import save_tokenizer
from sengi.model.turn_end import turn_end_id

SHARED_TOKENIZERS = Path(__file__).parents[2] / "../shared/tokenizers"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_folder(tmp_path / "model")


def edit_weights(folder: Path, change: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "drop":
        del tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name][:10].clone()
    else:
        tensors[name][0, 0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_come_back_as_they_were_saved(folder: Path) -> None:
    original, loaded = tiny_model(len(tiny_tokenizer())).state_dict(), load_model(folder)
    assert all(torch.equal(original[name], value) for name, value in loaded.state_dict().items())
    assert loaded.config._attn_implementation == "sdpa"
    assert not loaded.training
    assert next(loaded.parameters()).dtype == torch.float32


def test_stored_type_is_kept_on_request(folder: Path) -> None:
    tiny_model(len(tiny_tokenizer())).half().save_pretrained(folder)
    assert next(load_model(folder, dtype=None).parameters()).dtype == torch.float16
    assert next(load_model(folder).parameters()).dtype == torch.float32


# transformers would fill in random numbers and go on.
def test_incomplete_weights_are_an_error(folder: Path) -> None:
    edit_weights(folder, "drop")
    with pytest.raises(ModelError, match=r"1 missing keys, first model.layers.1.mlp.up_proj.weight"):
        load_model(folder)


def test_weights_of_another_shape_are_an_error(folder: Path) -> None:
    edit_weights(folder, "shape")
    with pytest.raises(ModelError, match=r"cannot be loaded|mismatched") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_malformed_config_is_one_line(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "no_such_function"}))
    with pytest.raises(ModelError, match="cannot be loaded: KeyError") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_tokenizer_round_trip_and_template_in_both_forms(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = "What is 12 + 30? Müller 你好\n"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    inline = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert (folder / "chat_template.jinja").read_bytes() == inline.encode() == CHATML.encode()


# A template with Windows line ends must not be translated on the way to the disk.
def test_template_bytes_are_kept(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML + "\r\n{# ünï #}\n"
    save_tokenizer(tokenizer, tmp_path)
    inline = json.loads((tmp_path / "tokenizer_config.json").read_bytes())["chat_template"]
    assert (tmp_path / "chat_template.jinja").read_bytes() == inline.encode() == tokenizer.chat_template.encode()


def test_a_folder_without_a_tokenizer_is_an_error(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(folder)
    with pytest.raises(ModelError, match="not a folder"):
        load_tokenizer(tmp_path / "nothing")
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_sentencepiece_is_named_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    monkeypatch.setattr(load, "_installed", lambda module: False)
    with pytest.raises(ModelError, match=r"pip install 'sengi\[sentencepiece\]'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["granite-7b-lab", "granite-3-vision", "mistral-v3", "qwen3"])
def test_real_tokenizers_load(name: str) -> None:
    folder = SHARED_TOKENIZERS / name
    if not folder.is_dir():
        pytest.skip("no shared tokenizers here")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer("a < b", add_special_tokens=False)["input_ids"]) == "a < b"
    reference = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    assert tokenizer("12 apples")["input_ids"] == reference("12 apples")["input_ids"]


def test_fingerprint_is_of_content_not_of_place_or_time(folder: Path, tmp_path: Path) -> None:
    first = model_fingerprint(folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    os.utime(copy / "model.safetensors", (1, 1))
    assert model_fingerprint(copy) == first
    edit_weights(copy, "one weight")
    assert model_fingerprint(copy) != first
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert model_fingerprint(folder) != first


def test_the_turn_ends_with_the_template_not_with_eos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    assert tokenizer.convert_ids_to_tokens(turn_end_id(tokenizer)) == "<|im_end|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert turn_end_id(tokenizer) is None
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert turn_end_id(tokenizer) is None
    tokenizer.chat_template = None
    assert turn_end_id(tokenizer) is None
