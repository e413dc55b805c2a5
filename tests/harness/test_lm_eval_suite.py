"""Side by side with lm-eval's own ``hf`` class: what its test suite asks of a backend, asked of both.

After tests/models/test_huggingface.py, test_bos_handling.py, test_empty_context.py and test_huggingface_max_length.py
of EleutherAI/lm-evaluation-harness: log-likelihoods, greedy flags, rolling log-likelihoods, texts, encoding, bos.
The models are tiny ones with random weights, so the reference is not a table but ``HFLM`` itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.registry import get_model
from tests.harness.requests import request, scored, written
from tests.model.tiny_folder import tiny_model, tiny_tokenizer, write_tiny_folder
from transformers import Gemma3Config, GPT2Config, GPT2LMHeadModel

from sengi.harness.__main__ import main as command_line
from sengi.harness.lm import SengiLM

pytest.importorskip("accelerate", reason="lm-eval's hf class needs accelerate")
from lm_eval.models.huggingface import HFLM

ROOT = Path(__file__).parents[2]
CONTEXTS = ["The capital of France is", "What is the capital of Spain? ", "", "a dog, a cat, a fish, " * 40]
CONTINUATIONS = [" Paris", " a dog, a cat", "42", " "]


def quiet(done: int, total: int, kind: str) -> None:
    """No progress bar."""


def write_gpt2(folder: Path) -> Path:
    """Another family: learned positions, n_positions instead of max_position_embeddings, no bos of its own."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=96, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama", "llama_bos", "gpt2"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[HFLM, SengiLM]:
    folder = tmp_path_factory.mktemp("suite") / request.param
    (write_gpt2 if request.param == "gpt2" else write_tiny_folder)(folder)
    return load_both(folder, **{"add_bos_token": True} if request.param == "llama_bos" else {})


def load_both(folder: Path, **options: Any) -> tuple[HFLM, SengiLM]:
    return (
        HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2, **options),
        SengiLM(str(folder), device="cpu", dtype="float32", batch_tokens=128, progress=quiet, **options),
    )


def same_scores(ours: Sequence[tuple[float, bool]], theirs: Sequence[tuple[float, bool]]) -> None:
    assert [total for total, _ in ours] == pytest.approx([total for total, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_loglikelihood(both: tuple[HFLM, SengiLM]) -> None:
    hf, ours = both
    asked = scored(*[(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS])
    same_scores(ours.loglikelihood(asked), hf.loglikelihood(asked, disable_tqdm=True))


def test_greedy_flags(both: tuple[HFLM, SengiLM]) -> None:
    # what the model writes itself is greedy, also over several tokens
    hf, ours = both
    asked = []
    for prompt in ("The capital of", "What is"):
        ids = hf.tok_encode(prompt)
        written_ids = hf.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0].tolist()[len(ids) :]
        asked += [(None, ids, written_ids[:n]) for n in (1, 3, 6)] + [(None, ids, [*written_ids[:2], 5])]
    theirs = hf._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [greedy for _, greedy in theirs].count(True) >= 6
    same_scores(ours._loglikelihood_tokens(asked), theirs)


def test_loglikelihood_rolling(both: tuple[HFLM, SengiLM]) -> None:
    hf, ours = both
    texts = ["hi", "The capital of France is Paris.", "twelve and thirty are forty two " * 40]
    asked = [request("loglikelihood_rolling", text) for text in texts]
    assert ours.loglikelihood_rolling(asked) == pytest.approx(hf.loglikelihood_rolling(asked, True), abs=1e-3)


def test_generate_until(both: tuple[HFLM, SengiLM]) -> None:
    hf, ours = both
    prompts = ["The capital of France is", "a dog", "a dog, a cat, a fish, " * 30]
    plain = hf.generate_until(written(*prompts, max_gen_toks=20), disable_tqdm=True)
    assert ours.generate_until(written(*prompts, max_gen_toks=20)) == plain
    # strings that do occur, across tokens, and in any form that a task may give them
    stop = plain[0][4:6]
    for arguments in (
        {"until": [stop], "max_gen_toks": 20},
        {"until": plain[1][3], "max_new_tokens": 20},
        {"until": [stop, "\n\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 12},
        {"max_gen_toks": 5, "temperature": 0},
    ):
        asked = written(*prompts, **arguments)
        assert ours.generate_until(asked) == hf.generate_until(asked, disable_tqdm=True)


def test_encoding(both: tuple[HFLM, SengiLM]) -> None:
    hf, ours = both
    bos = hf.tokenizer.bos_token or ""
    for text in ("foo bar", "bar foo", f"{bos}foo", "", " ", "Müller 你好", "<|im_start|>user\nhi<|im_end|>\n"):
        for options in ({}, {"add_special_tokens": True}, {"add_special_tokens": False}, {"left_truncate_len": 2}):
            assert ours.tok_encode(text, **options) == hf.tok_encode(text, **options)
        ids = hf.tok_encode(text)
        assert ours.tok_decode(ids) == hf.tok_decode(ids)
        assert ours.tok_decode(ids, skip_special_tokens=False) == hf.tok_decode(ids, skip_special_tokens=False)
        if ids:
            assert ours.prompt_ids(text) == hf.tok_batch_encode([text])[0].tolist()[0]
            assert ours._encode_pair("a" + text, "b") == hf._encode_pair("a" + text, "b")


def test_properties(both: tuple[HFLM, SengiLM]) -> None:
    hf, ours = both
    names = ("max_length", "max_gen_toks", "eot_token_id", "prefix_token_id", "tokenizer_name", "rank", "world_size")
    assert [getattr(ours, name) for name in names] == [getattr(hf, name) for name in names]
    assert ours.chat_template(True) == hf.chat_template(True)


def test_context_length_of_a_nested_configuration(both: tuple[HFLM, SengiLM], monkeypatch: pytest.MonkeyPatch) -> None:
    hf, ours = both
    for config in (Gemma3Config(), GPT2Config(n_positions=77)):
        monkeypatch.setattr(hf.model, "config", config)
        monkeypatch.setattr(ours.model, "config", config)
        assert ours.max_length == hf.max_length > 2


def test_chat_prompts(both: tuple[HFLM, SengiLM]) -> None:
    hf, ours = both
    messages = [{"role": "user", "content": "What is 12 + 30?"}, {"role": "assistant", "content": "It is "}]
    for chat, add in ((messages[:1], True), (messages, False)):
        text = hf.apply_chat_template(chat, add_generation_prompt=add)
        assert ours.apply_chat_template(chat, add_generation_prompt=add) == text
        # a template that writes bos itself: no second one in front
        asked = scored((text, "42"), (text, " forty two"))
        same_scores(ours.loglikelihood(asked), hf.loglikelihood(asked, disable_tqdm=True))
        asked = written(text, max_gen_toks=8)
        assert ours.generate_until(asked) == hf.generate_until(asked, disable_tqdm=True)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of lm-eval on files of our own: choices, texts, perplexity."""
    folder = tmp_path_factory.mktemp("tasks")
    animals = ["dog", "cat", "fish", "hen", "cow", "fox", "owl", "bee"]
    rows = [
        {
            "question": f"Which animal is number {n}?",
            "choices": [animals[n], animals[n - 1], animals[n - 2]],
            "answer": 0,
        }
        for n in range(8)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{question}}\nAnswer:",
    }
    choices = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer"}
    texts = {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 10},
        "metric_list": [{"metric": "exact_match"}],
    }
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_target": "{{question}}", "doc_to_text": ""}
    rolling["metric_list"] = [{"metric": "bits_per_byte"}]
    for name, more in (("tiny_choices", choices), ("tiny_texts", texts), ("tiny_rolling", rolling)):
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | common | more))  # JSON is YAML
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"num_fewshot": 0},
        {"num_fewshot": 3},
        {
            "num_fewshot": 2,
            "apply_chat_template": True,
            "fewshot_as_multiturn": True,
            "system_instruction": "Be short.",
        },
    ],
    ids=["0-shot", "3-shot", "chat"],
)
def test_whole_evaluations_are_equal(
    tasks: Path, options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip, takes seconds
    both = load_both(write_tiny_folder(tmp_path / "model"))
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    names = ["tiny_choices", "tiny_texts"] + ["tiny_rolling"] * ("apply_chat_template" not in options)
    theirs, ours = (
        simple_evaluate(model=lm, tasks=names, task_manager=manager, bootstrap_iters=0, **options) for lm in both
    )
    assert ours["config"]["model"] == both[1].config._name_or_path
    for name in names:
        their_scores, our_scores = theirs["results"][name], ours["results"][name]
        assert our_scores.keys() == their_scores.keys()
        for metric, value in their_scores.items():
            assert our_scores[metric] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value)
        for their, our in zip(theirs["samples"][name], ours["samples"][name], strict=True):
            assert our["arguments"] == their["arguments"]
            assert our["prompt_hash"] == their["prompt_hash"]
            if name == "tiny_texts":
                assert our["resps"] == their["resps"]
            if name == "tiny_choices":
                same_scores([resp[0] for resp in our["resps"]], [resp[0] for resp in their["resps"]])


@pytest.mark.slow  # lm-eval's command line reads all its 13,986 task files first
def test_lm_evals_own_command_line(tasks: Path, tmp_path: Path) -> None:
    # a model that lm-eval itself does not know, and its own output files
    folder = write_tiny_folder(tmp_path / "model")
    program = [sys.executable, "-m", "sengi.harness", "run", "--model", "sengi", "--tasks", "tiny_choices"]
    options = ["--model_args", f"pretrained={folder}", "--include_path", str(tasks)]
    options += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run([*program, *options], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "|tiny_choices|" in done.stdout
    [results] = (tmp_path / "out").rglob("results_*.json")
    written_results = json.loads(results.read_text())
    assert written_results["config"]["model"] == "sengi"
    assert written_results["config"]["model_num_parameters"] == tiny_model(len(tiny_tokenizer())).num_parameters()
    assert len(list((tmp_path / "out").rglob("samples_tiny_choices_*.jsonl"))) == 1


def test_an_error_on_the_command_line_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # lm-eval reads all its task files before it makes the model: only the making is looked at here
    monkeypatch.setattr(
        "lm_eval.__main__.cli_evaluate", lambda: get_model("sengi").create_from_arg_obj({"pretrained": "no-such-model"})
    )
    assert command_line() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: model 'no-such-model'")
