from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from tests.model.families import small_model
from tests.model.tiny_folder import CHATML, write_tiny_folder
from tests.train.memory_run import small_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from sengi.model.load import load_model, load_tokenizer
from sengi.train import export
from sengi.train.export import export_files, model_card, weight_files

ENDOFTEXT, START, END, PAD = range(4)  # special tokens of the tiny folder
ROW = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("export") / "base")


def edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def exported(base: Path, out: Path, dtype: torch.dtype = torch.float32, **tokenizer: Any) -> Path:
    """The folder of a checkpoint, without training."""
    copy = Path(shutil.copytree(base, out.with_name("copy")))
    edit(copy, "tokenizer_config.json", **tokenizer)
    lm = load_model(copy)
    out.mkdir()
    for name, content in export_files(lm, load_tokenizer(copy), dtype).items():
        (out / name).write_bytes(content)
    state = {name: p.detach().to(dtype) for name, p in lm.named_parameters()}
    for name, pieces in weight_files(lm, state):
        (out / name).write_bytes(b"".join(pieces))
    return out


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_the_template_is_in_both_places_and_byte_identical(base: Path, tmp_path: Path) -> None:
    out = exported(base, tmp_path / "out")
    assert (out / "chat_template.jinja").read_bytes() == CHATML.encode()
    assert read(out, "tokenizer_config.json")["chat_template"] == CHATML


@pytest.mark.parametrize("kept", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_base_with_one_form_gets_both(base: Path, tmp_path: Path, kept: str) -> None:
    one = Path(shutil.copytree(base, tmp_path / "one"))
    if kept == "chat_template.jinja":
        edit(one, "tokenizer_config.json", chat_template=...)
    else:
        (one / "chat_template.jinja").unlink()
    out = exported(one, tmp_path / "out")
    assert (out / "chat_template.jinja").read_bytes() == CHATML.encode()
    assert read(out, "tokenizer_config.json")["chat_template"] == CHATML


def test_named_templates_stay_and_the_default_one_counts(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "named"))
    tokenizer = load_tokenizer(copy)
    tokenizer.chat_template = {"default": CHATML, "tool_use": CHATML + "tools"}
    (copy / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(copy)
    files = export_files(load_model(copy), load_tokenizer(copy), torch.float32)
    assert files["chat_template.jinja"] == CHATML.encode()
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == CHATML
    assert files["additional_chat_templates/tool_use.jinja"] == (CHATML + "tools").encode()


EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


# Rule: readers find the names and shapes that the family's files have; transformers 5 holds experts fused in memory.
@pytest.mark.parametrize("config", ["MixtralConfig", "Qwen3MoeConfig", "OlmoeConfig", "LlamaConfig"])
def test_weights_have_the_layout_of_the_familys_own_files(config: str, tmp_path: Path) -> None:
    lm = small_model(config, EXPERTS if config != "LlamaConfig" else {})
    lm.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    for name, pieces in weight_files(lm, {name: p.detach() for name, p in lm.named_parameters()}):
        (tmp_path / "ours" / name).write_bytes(b"".join(pieces))
    ours, theirs = (load_file(tmp_path / one / "model.safetensors") for one in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_transformers_loads_the_folder_and_computes_the_same(base: Path, tmp_path: Path) -> None:
    out = exported(base, tmp_path / "out")
    ours, theirs = AutoModelForCausalLM.from_pretrained(out).eval(), load_model(base)
    tokenizer, before = AutoTokenizer.from_pretrained(out), load_tokenizer(base)
    text = tokenizer.apply_chat_template(ROW, tokenize=False, add_generation_prompt=True)
    assert text == before.apply_chat_template(ROW, tokenize=False, add_generation_prompt=True)
    assert tokenizer(text)["input_ids"] == before(text)["input_ids"]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert ours.config.use_cache


def test_the_end_of_a_turn_is_eos_everywhere_and_pad_is_none_of_them(base: Path, tmp_path: Path) -> None:
    # a base model: eos ends documents, the template ends turns with another token
    out = exported(base, tmp_path / "out", eos_token="<|endoftext|>")
    assert read(out, "tokenizer_config.json")["eos_token"] == "<|im_end|>"
    assert read(out, "config.json")["eos_token_id"] == END
    # generation also stops where documents ended
    generation = read(out, "generation_config.json")
    assert generation["eos_token_id"] == [END, ENDOFTEXT]
    assert generation["pad_token_id"] == read(out, "config.json")["pad_token_id"] == PAD
    assert read(out, "tokenizer_config.json")["pad_token"] == "<|pad|>"


def test_one_end_is_one_number(base: Path, tmp_path: Path) -> None:
    out = exported(base, tmp_path / "out")
    assert read(out, "generation_config.json")["eos_token_id"] == END
    assert read(out, "generation_config.json")["bos_token_id"] == START


@pytest.mark.parametrize("pad", ["<|im_end|>", None])
def test_a_pad_that_is_an_eos_is_replaced_by_an_unused_token(base: Path, tmp_path: Path, pad: str | None) -> None:
    # padding with eos teaches or hides the end of a turn, depending on the reader
    out = exported(base, tmp_path / "out", pad_token=pad, unk_token=None)
    assert read(out, "tokenizer_config.json")["pad_token"] == "<|pad|>"
    assert read(out, "config.json")["pad_token_id"] == PAD


def test_generation_stops_at_the_end_of_a_turn(base: Path, tmp_path: Path) -> None:
    out = exported(base, tmp_path / "out")
    lm = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():  # a model that says one thing only: the end of a turn
        lm.lm_head.weight = torch.nn.Parameter(torch.zeros_like(lm.lm_head.weight))
        lm.lm_head.weight[END] = 0.0
        lm.lm_head.bias = torch.nn.Parameter(torch.eye(lm.config.vocab_size)[END])
    ids = torch.tensor([[5, 6, 7]])
    reply = lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False)
    assert reply.tolist() == [[5, 6, 7, END]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_type_that_the_config_says(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    out = exported(base, tmp_path / "out", dtype)
    assert read(out, "config.json")["dtype"] == str(dtype).removeprefix("torch.")
    with safe_open(out / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118 - no mapping
        assert file.metadata() == {"format": "pt"}  # some readers refuse a file without it


def test_large_weights_are_several_files_with_an_index(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SHARD_BYTES", 30_000)
    out = exported(base, tmp_path / "out")
    index = read(out, "model.safetensors.index.json")
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(set(index["weight_map"].values())) == files
    ours, theirs = AutoModelForCausalLM.from_pretrained(out), load_model(base)
    for (name, one), (_, two) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_nothing_private_of_this_process_is_in_the_config(base: Path, tmp_path: Path) -> None:
    out = exported(base, tmp_path / "out")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        text = (out / name).read_text()
        assert str(base.parent) not in text
        assert "sengi_documents" not in text
        assert "_attn_implementation" not in text
    assert read(out, "config.json")["architectures"] == ["LlamaForCausalLM"]


def test_the_model_card_has_the_header_that_hubs_read() -> None:
    recipe = small_recipe(model_name_or_path='odd: "name"', output_dir="runs/first", learning_rate=2e-5)
    text = model_card(recipe, 12, 46_080, 1.25, {"math": 40_000, "chat": 6_080}).decode()
    _, header, body = text.split("---\n", 2)
    values = yaml.safe_load(header)
    assert values["base_model"] == 'odd: "name"'
    assert values["library_name"] == "transformers"
    assert "# first, step 12" in body
    assert "46,080 samples seen" in body
    assert "| math | 40,000 |" in body
