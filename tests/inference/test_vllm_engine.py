from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.model.tiny_folder import write_tiny_folder

from sengi.errors import InputError
from sengi.evaluate.suite import Suite
from sengi.evaluation import Evaluation
from sengi.inference.generation import Generator
from sengi.inference.generation_request import GenerationRequest
from sengi.inference.vllm_engine import use_vllm, without_vllm
from sengi.model.load import load_model, load_tokenizer
from sengi.train import evaluation

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

    def score_step(*_: Any) -> Evaluation:
        taken.append(use_vllm("auto", tmp_path, torch.device("cuda")))
        return Evaluation()

    monkeypatch.setattr(evaluation, "score_step", score_step)
    scorer: Any = object.__new__(evaluation.Evaluations)
    scorer.folder, scorer.suite, scorer._data, scorer.failed = SimpleNamespace(path=tmp_path), Suite(("x",)), "", {}
    scorer._run, scorer._remarks = SimpleNamespace(setup=SimpleNamespace(model_folder=tmp_path)), set()
    scorer._score(0)
    assert taken == [False]
