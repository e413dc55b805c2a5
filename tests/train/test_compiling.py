from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny_folder import write_tiny_folder
from tests.train.memory_run import small_recipe

from sengi.errors import StoppedByRequest
from sengi.model.checkpointing import Dial
from sengi.model.compiled import can_compile
from sengi.recipe_sources import resolve_recipe
from sengi.train import setup
from sengi.train.compiling import PAYS_FROM, decide
from sengi.train.observer import Observer
from sengi.train.run import train

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALF, FULL = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("asked", "earlier", "device", "dtype", "seconds", "dial", "expected"),
    [
        ("auto", None, CPU, HALF, PAYS_FROM, "none", True),
        ("auto", None, CPU, HALF, PAYS_FROM, "full", True),
        ("auto", None, CPU, HALF, PAYS_FROM - 1, "none", False),  # the warm-up would not come back
        ("auto", None, CPU, HALF, None, "none", False),
        ("auto", None, CPU, FULL, PAYS_FROM, "none", False),  # measured: slower
        ("auto", None, CUDA, HALF, PAYS_FROM, "none", False),  # not measured
        ("auto", True, CPU, HALF, 1.0, "none", True),  # a run keeps its rounding
        ("auto", False, CPU, HALF, PAYS_FROM, "none", False),
        (True, False, CPU, FULL, 1.0, "none", True),
        (True, None, CUDA, HALF, None, "none", True),
        (True, None, CPU, HALF, PAYS_FROM, "selective", False),
        (False, True, CPU, HALF, PAYS_FROM, "none", False),
    ],
)
def test_what_is_compiled(
    asked: Any,
    earlier: bool | None,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float | None,
    dial: Dial,
    expected: bool,
) -> None:
    found, reason = decide(small_recipe(torch_compile=asked), earlier, device, dtype, seconds, dial)
    assert found is expected
    assert reason


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    write_tiny_folder(tmp_path / "model")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} plus {i % 7}?"},
                {"role": "assistant", "content": f"It is {i + i % 7}." + " Yes." * (i % 4)},
            ]
        }
        for i in range(40)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": str(tmp_path / "model"),
        "data": [{"path": str(tmp_path / "train.jsonl")}],
        "effective_batch_size": 8,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "max_tokens_per_device": 160,
        "dtype": "float32",
        "torch_compile": True,
    }


class Told(Observer):
    """Keeps messages and the plan; asks to stop after a step."""

    def __init__(self, stop_after: int = 0) -> None:
        self.messages: list[str] = []
        self.stop_after = stop_after
        self.warnings: list[str] = []
        self.compiled: bool | None = None

    def message(self, text: str) -> None:
        self.messages.append(text)

    def plan(self, plan: Any) -> None:
        self.compiled, self.warnings = plan.torch_compile, plan.warnings

    def step(self, record: dict[str, Any]) -> None:
        if record["step"] == self.stop_after:
            raise KeyboardInterrupt


def dynamics(folder: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (folder / "dynamics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines]


# Rule: a compiled run says what compiling took, learns what a plain one learns, and continues bit for bit, though the
# packs that come first after the interruption are others.
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_a_compiled_run_learns_the_same_and_continues_bit_for_bit(
    values: dict[str, Any], tmp_path: Path, dtype: str, rounding: float
) -> None:
    if cause := can_compile(CPU):
        pytest.skip(f"torch.compile does not work here: {cause}")
    told, values["dtype"] = Told(), dtype
    whole, cut, plain = (tmp_path / name for name in ("whole", "cut", "plain"))
    train(resolve_recipe(values=values | {"output_dir": str(whole), "save_steps": 2}), told)
    assert told.compiled
    assert any(message.startswith("compiled the layers in ") for message in told.messages)

    torch.compiler.reset()  # as in a new process
    with pytest.raises((StoppedByRequest, KeyboardInterrupt)):
        train(resolve_recipe(values=values | {"output_dir": str(cut), "save_steps": 2}), Told(stop_after=3))
    torch.compiler.reset()
    train(resolve_recipe(values=values | {"output_dir": str(cut), "save_steps": 2}), Told())
    assert dynamics(cut) == dynamics(whole)

    train(resolve_recipe(values=values | {"output_dir": str(plain), "torch_compile": False}), Told())
    for ours, theirs in zip(dynamics(whole), dynamics(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=rounding)


# The same of bfloat16 without compiling, and on other micro-batches, down to one conversation each: the same up to its
# rounding.
def test_a_run_in_bfloat16_continues_bit_for_bit_and_packing_changes_rounding_only(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values |= {"dtype": "bfloat16", "torch_compile": False, "save_steps": 2}
    whole, cut, one_by_one, full = (tmp_path / name for name in ("whole", "cut", "one_by_one", "full"))
    train(resolve_recipe(values=values | {"output_dir": str(whole)}), Told())
    with pytest.raises((StoppedByRequest, KeyboardInterrupt)):
        train(resolve_recipe(values=values | {"output_dir": str(cut)}), Told(stop_after=3))
    train(resolve_recipe(values=values | {"output_dir": str(cut)}), Told())
    assert dynamics(cut) == dynamics(whole)
    assert exported(cut) == exported(whole)

    train(resolve_recipe(values=values | {"output_dir": str(one_by_one), "max_tokens_per_device": 64}), Told())
    train(resolve_recipe(values=values | {"output_dir": str(full), "dtype": "float32"}), Told())
    for ours, alone, exact in zip(dynamics(whole), dynamics(one_by_one), dynamics(full), strict=True):
        assert ours == pytest.approx(alone, rel=0.02)
        assert ours == pytest.approx(exact, rel=0.02)


def exported(folder: Path) -> bytes:
    return (folder / "checkpoint-4" / "model.safetensors").read_bytes()


def test_without_a_compiler_the_run_goes_on_and_says_so(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "can_compile", lambda device: "no C++ compiler")
    told = Told()
    train(resolve_recipe(values=values | {"output_dir": str(tmp_path / "run"), "max_steps": 1}), told)
    assert told.compiled is False
    assert any("torch_compile is not used" in line and "no C++ compiler" in line for line in told.warnings)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["torch_compile"] is False


# Rule: sharded layers are compiled as well, each rank for itself, and learn the same; in bfloat16 up to its rounding.
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_two_processes_compile_and_learn_the_same(
    values: dict[str, Any], tmp_path: Path, dtype: str, rounding: float
) -> None:
    if cause := can_compile(CPU):
        pytest.skip(f"torch.compile does not work here: {cause}")
    values["dtype"] = dtype
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(values | {"output_dir": str(tmp_path / "two")}))  # JSON is YAML
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "sengi", "train", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "compiled the layers in" in done.stderr + done.stdout
    train(resolve_recipe(values=values | {"output_dir": str(tmp_path / "one"), "torch_compile": False}), Told())
    for ours, theirs in zip(dynamics(tmp_path / "two"), dynamics(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=rounding)
