"""Data, recipe and stand-ins that the tests of phased runs share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny_folder import write_tiny_folder
from tests.train.phases.phased_run import (
    FACTS,
    LOSSES,
    SKILLS,
    Recipe,
)

from sengi.train import memory_fit, setup
from sengi.train.loop import Loop
from sengi.train.run_folder import RunFolder
from sengi.train.snapshot import trained


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, training data of two phases, held-out data, questions."""
    folder = tmp_path_factory.mktemp("parts")
    write_tiny_folder(folder / "model")
    for name, first, count in (("facts", 0, FACTS), ("skills", 20, SKILLS), ("heldout", 50, 3)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"What is {n} plus {n % 7}?"},
                    {"role": "assistant", "content": "It is " + f"{n + n % 7}, " * (1 + n % 5)},
                ],
                "phase": name,
                "level": (n * 5) % 11,
            }
            for n in range(first, first + count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [
        {"question": f"What is {n} plus 1?", "choices": [str(n + 1), str(n)], "answer": 0, "id": f"q{n}"}
        for n in range(4)
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return folder


@pytest.fixture(autouse=True)
def forecasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rough forecasts: a good half of so small a run is to trace its memory and to measure the machine."""

    def untraced(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(memory_fit, "trace_model", untraced)
    monkeypatch.setattr(setup, "peak_flops", lambda *_: 1e9)


@pytest.fixture
def recipe(parts: Path, tmp_path: Path) -> Recipe:
    """Values of a run of two phases; keyword arguments change or (None) remove keys."""

    def values(**changes: Any) -> dict[str, Any]:
        recipe = {
            "model_name_or_path": str(parts / "model"),
            "data": [{"path": str(parts / "facts.jsonl")}, {"path": str(parts / "skills.jsonl")}],
            "eval_data": [{"path": str(parts / "heldout.jsonl")}],
            "output_dir": str(tmp_path / "run"),
            "strategy": "phased",
            "phases": {"select": "heldout_loss"},
            "effective_batch_size": 2,
            "num_train_epochs": 1,
            "learning_rate": 1e-3,
            "warmup_steps": 1,
            "max_tokens_per_device": 128,
            "dtype": "float32",
            "eval_steps": 2,
            "save_total_limit": 2,
        }
        return {key: value for key, value in (recipe | changes).items() if value is not None or key not in recipe}

    return values


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses by step that make the middle checkpoint of the first phase the best."""
    write = RunFolder.write_evaluation

    def pretend(self: Any, step: int, kind: str, content: dict[str, Any], items: list[Any]) -> None:
        content["scores"][0]["value"] = LOSSES[step // 2]
        write(self, step, kind, content, items)

    monkeypatch.setattr(RunFolder, "write_evaluation", pretend)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, dict[str, torch.Tensor]]]:
    """Weights and moments by the number of the step that begins with them."""
    before: dict[int, dict[str, dict[str, torch.Tensor]]] = {}
    step = Loop._train_step

    def watch(loop: Loop, number: int) -> None:
        moments = {
            name: loop.optimizer.state[p]["exp_avg"].clone()
            for name, p in trained(loop.model)
            if "exp_avg" in loop.optimizer.state[p]
        }
        weights = {name: p.detach().clone() for name, p in trained(loop.model)}
        before[number] = {"weights": weights, "moments": moments}
        step(loop, number)

    monkeypatch.setattr(Loop, "_train_step", watch)
    return before
