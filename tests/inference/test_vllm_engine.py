from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.model.tiny_folder import write_tiny_folder

from sengi.errors import InputError
from sengi.evaluate.suite import Suite
from sengi.evaluation import Evaluation
from sengi.inference import generation
from sengi.inference.generation import Generator
from sengi.inference.generation_request import GenerationRequest
from sengi.inference.vllm_engine import use_vllm, without_vllm
from sengi.model.load import load_model, load_tokenizer
from sengi.train import evaluation, score_step

CPU = torch.device("cpu")


# vLLM loads a folder by itself: it never stands in where the folder is not known to hold this very model.
def test_auto_stays_with_transformers(tmp_path: Path) -> None:
    assert not use_vllm("auto", tmp_path, CPU)
    assert not use_vllm("auto", None, torch.device("cuda"))
    assert not use_vllm("transformers", tmp_path, torch.device("cuda"))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the model is on cpu, vllm needs cuda; the folder .* is not given"):
        use_vllm("vllm", None, CPU)
    with pytest.raises(InputError, match="engine is 'vlm'; it is one of auto, transformers, vllm"):
        use_vllm("vlm", tmp_path, CPU)
    folder = write_tiny_folder(tmp_path / "tiny")
    with pytest.raises(InputError, match="or take engine='transformers'"):
        Generator(load_model(folder), load_tokenizer(folder), engine="vllm", folder=folder)


@pytest.mark.cuda
def test_vllm_writes_what_transformers_writes(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    folder = write_tiny_folder(tmp_path / "tiny")
    model, tokenizer = load_model(folder).cuda(), load_tokenizer(folder)
    requests = [GenerationRequest([5 + i] * 9, 8 + i, ("a",)) for i in range(4)]
    texts = Generator(model, tokenizer, engine="vllm", folder=folder).generate(requests)
    assert texts == Generator(model, tokenizer, engine="transformers").generate(requests)


# Where a training runs, memory that is free now is the training's a moment later: auto never takes vLLM there.
def test_auto_never_takes_vllm_beside_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    cuda = torch.device("cuda")
    assert use_vllm("auto", tmp_path, cuda)
    with without_vllm():
        assert not use_vllm("auto", tmp_path, cuda)
        assert use_vllm("vllm", tmp_path, cuda)
    assert use_vllm("auto", tmp_path, cuda)


def test_a_training_scores_its_checkpoints_without_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    taken: list[bool] = []

    def scored(*_: Any) -> Evaluation:
        taken.append(use_vllm("auto", tmp_path, torch.device("cuda")))
        return Evaluation()

    monkeypatch.setattr(evaluation, "score_step", scored)
    scorer: Any = object.__new__(evaluation.Evaluations)
    scorer.folder, scorer.suite, scorer._data, scorer.failed = SimpleNamespace(path=tmp_path), Suite(("x",)), "", {}
    scorer._run, scorer._remarks = SimpleNamespace(setup=SimpleNamespace(model_folder=tmp_path)), set()
    scorer._score(0)
    assert taken == [False]
    # the second process of eval_process: second stands beside the same training
    job = {"suite": {"tasks": ["x"], "data_root": None}, "run": "", "model": "", "step": 1, "data": "", "parent": 1}
    monkeypatch.setattr("sengi.evaluate.checkpoints.score_step", scored)
    monkeypatch.setattr(score_step, "die_with", lambda parent: None)
    monkeypatch.setattr(os, "nice", lambda by: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(job)))
    assert score_step.main() == 0
    assert taken == [False, False]


# Every rank's vLLM would take the first GPU.
def test_auto_never_takes_vllm_on_several_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for world, taken in (("1", True), ("2", False)):
        monkeypatch.setenv("WORLD_SIZE", world)
        assert use_vllm("auto", tmp_path, torch.device("cuda")) == taken
        assert use_vllm("vllm", tmp_path, torch.device("cuda"))


Started = Callable[[str], Generator]


@pytest.fixture
def with_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Started, list[int]]:
    """A generator by its engine, whose vLLM says "v"; and the longest text of each start, which fails above 40."""
    starts: list[int] = []

    class LLM:
        def __init__(self, max_model_len: int, **_: Any) -> None:
            starts.append(max_model_len)
            if max_model_len > 40:
                raise ValueError("no room for\nthe KV cache")

        def generate(self, prompts: list[Any], parameters: list[Any], use_tqdm: bool) -> list[Any]:
            return [SimpleNamespace(outputs=[SimpleNamespace(text="v")]) for _ in prompts]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=dict))
    monkeypatch.setattr(generation, "use_vllm", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 2))
    folder = write_tiny_folder(tmp_path / "tiny")

    def generator(engine: str) -> Generator:
        return Generator(load_model(folder), load_tokenizer(folder), engine=engine, folder=folder)

    return generator, starts


def test_vllm_gets_room_for_the_longest_text_of_the_call(with_vllm: tuple[Started, list[int]]) -> None:
    generator, starts = with_vllm[0]("vllm"), with_vllm[1]
    assert generator.generate([]) == []
    assert starts == []  # it waits until it knows how long the texts may be
    assert generator.generate([GenerationRequest([5] * 9, 8), GenerationRequest([5] * 3, 20)]) == ["v", "v"]
    assert generator.generate([GenerationRequest([5] * 9, 14)]) == ["v"]
    assert starts == [23]  # the same vLLM: there is room
    assert generator.generate([GenerationRequest([5] * 9, 15)]) == ["v"]
    assert starts == [23, 24]


def test_a_vllm_that_cannot_start_leaves_the_texts_to_transformers(with_vllm: tuple[Started, list[int]]) -> None:
    generator, starts = with_vllm
    requests = [GenerationRequest([5 + i] * 30, 11 + i) for i in range(2)]
    with pytest.raises(InputError, match="vLLM could not start: ValueError: no room for the KV cache; take engine="):
        generator("vllm").generate(requests)
    auto = generator("auto")
    with pytest.warns(UserWarning, match="so transformers writes the texts: ValueError: no room for the KV cache$"):
        texts = auto.generate(requests)
    assert "v" not in texts
    assert auto.generate(requests) == texts
    assert starts == [42, 42]  # it is not tried again
