from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sengi.cli.data_check import check
from sengi.errors import DataError, InputError

GOOD = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
OPTIONS = {"model": "tiny", "max_length": 64, "effective_batch_size": 1}


@pytest.fixture(autouse=True)
def tiny_model(tmp_path_factory, monkeypatch) -> None:
    """The name ``tiny`` stands for a folder with a tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr("sengi.model.resolve.resolve_model", lambda name: folder)


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_good_data_exits_with_0_and_says_ok(tmp_path, capsys):
    assert check([write(tmp_path / "a.jsonl", json.dumps(GOOD))], **OPTIONS) == 0
    printed = capsys.readouterr().out
    assert "verdict: ok" in printed
    assert "1, of which 1 can be trained on" in printed


def test_bad_rows_exit_with_2_and_name_the_rows(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", json.dumps(GOOD), "{", json.dumps(GOOD))
    assert check([path], **OPTIONS) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "error not_json: 1" in printed
    assert "a.jsonlrows2" in printed.replace(" ", "")  # a long path is folded, never cut
    assert "warning duplicate: 1" in printed
    assert "rows 3 (as 1)" in printed
    assert "verdict: errors" in printed


def test_json_is_one_object_on_stdout(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", json.dumps({**GOOD, "source": "x\u001b[31m"}))
    assert check([path], overlap=[path], json=True, **OPTIONS) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["rows"], report["files"]) == ("ok", 1, [path])
    assert report["overlap"][0]["found"] == 0  # "2 + 2?" is too short to be told from chance
    assert report["options"]["max_length"] == 64


def test_words_of_the_data_reach_the_terminal_as_text(tmp_path, capsys):
    # Rule: neither terminal codes nor rich's own markup in a row are obeyed.
    path = write(tmp_path / "a.jsonl", json.dumps({**GOOD, "source": "\x1b[31m[bold]red[/bold]"}))
    check([path], **OPTIONS)
    printed = capsys.readouterr().out
    assert "\x1b[31m" not in printed
    assert r"\x1b[31m[bold]red[/bold]" in printed


def test_bad_options_and_paths(tmp_path):
    with pytest.raises(InputError, match=r"--max-length 0"):
        check(["x.jsonl"], model="tiny", max_length=0)
    with pytest.raises(DataError, match=r"no such file"):
        check([str(tmp_path / "x.jsonl")], **OPTIONS)


def test_an_evaluation_file_that_cannot_be_compared_is_named(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", json.dumps(GOOD))
    (tmp_path / "eval").mkdir()
    write(tmp_path / "eval" / "questions.jsonl", json.dumps({"question": "What is two and two, in one word?"}))
    (tmp_path / "eval" / "bbh.zip").write_bytes(b"not looked into")
    assert check([path], overlap=[str(tmp_path / "eval")], **OPTIONS) == 0
    told = "".join(capsys.readouterr().out.split())  # the path is folded wherever the terminal ends
    assert "bbh.zip:notcompared,itskindisnotknown" in told
    assert check([path], overlap=[str(tmp_path / "eval")], json=True, **OPTIONS) == 0
    report = json.loads(capsys.readouterr().out)
    assert [Path(name).name for name in report["not_compared"]] == ["bbh.zip"]
    assert len(report["overlap"]) == 1
