"""Runs that train an adapter: the same promises as for whole models, and every door that a checkpoint goes through."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import warm
from tests.model.tiny_folder import write_tiny_folder
from tests.train.crash_harness import dynamics

from sengi.cli.app import run
from sengi.errors import CheckpointError, InputError, ModelError
from sengi.model.load import load_model
from sengi.recipe_sources import resolve_recipe
from sengi.train.export_folder import export_folder
from sengi.train.observer import Observer
from sengi.train.run import train

pytest.importorskip("peft")
STEPS = 6
KINDS = ["lora", pytest.param("qlora", marks=pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
))]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, questions."""
    folder = tmp_path_factory.mktemp("lora")
    write_tiny_folder(folder / "model")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} plus {i % 7}?"},
                {"role": "assistant", "content": f"It is {i + i % 7}." + " Yes." * (i % 4)},
            ]
        }
        for i in range(40)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    (folder / "own.jsonl").write_text(
        json.dumps({"question": "Is 1 odd?", "choices": ["Yes", "No"], "answer": 0}) + "\n"
    )
    return folder


def write_recipe(folder: Path, name: str, **more: Any) -> Path:
    values: dict[str, Any] = {
        "model_name_or_path": str(folder / "model"),
        "data": str(folder / "train.jsonl"),
        "output_dir": str(folder / name),
        "effective_batch_size": 8,
        "learning_rate": 5e-3,
        "max_steps": STEPS,
        "max_tokens_per_device": 160,
        "save_steps": 2,
        "save_total_limit": None,
        "dtype": "float32",
        "use_peft": True,
        "lora_r": 3,
        "load_in_4bit": name.startswith("qlora"),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values | more))  # JSON is YAML
    return path


def trained(folder: Path, name: str, **more: Any) -> Path:
    """The run of a recipe, finished; made once for the whole module."""
    if not (folder / name).exists():
        train(resolve_recipe(write_recipe(folder, name, **more)))
    return folder / name


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_only_the_adapter_learns_and_is_saved(folder: Path) -> None:
    whole, lora = trained(folder, "whole", use_peft=False, lora_r=32), trained(folder, "lora")
    one, two = dynamics(whole), dynamics(lora)
    # B begins as zero: the first step sees the base; the batches are the same ones
    assert two[0]["loss"] == one[0]["loss"]
    assert [line["samples_sha256"] for line in two] == [line["samples_sha256"] for line in one]
    assert two[-1]["loss"] < two[0]["loss"] - 0.1
    files = content(lora / f"checkpoint-{STEPS}")
    assert {name for name in files if "/" not in name} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "base_model.json", "chat_template.jinja",
        "manifest.json", "manifest.json.sha256", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    state = load_file(lora / f"checkpoint-{STEPS}" / "training_state" / "rank-00000-00000.safetensors")
    assert len(state) == 1 + 3 * 2 * 14  # the step; weight and two moments of A and B of 14 layers
    assert all(".lora_" in name for name in state if name != "step")
    assert b"library_name: peft" in files["README.md"]
    # the norm is that of the adapter's gradient
    assert two[0]["grad_norm"] != one[0]["grad_norm"]


class Broken(Observer):
    """Ends the process's work in the middle of a step, as a crash does."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, record: dict[str, Any]) -> None:
        if record["step"] == self.at:
            raise RuntimeError("crash")


@pytest.mark.parametrize("name", KINDS)
def test_a_run_that_is_continued_is_the_unbroken_one_bit_for_bit(folder: Path, name: str) -> None:
    unbroken = trained(folder, name)
    recipe = resolve_recipe(write_recipe(folder, f"{name}-broken"))
    with pytest.raises(RuntimeError, match="crash"):
        train(recipe, Broken(3))
    torch.randn(7)  # whatever was drawn meanwhile
    train(recipe)
    assert dynamics(folder / f"{name}-broken") == dynamics(unbroken)
    one, two = (content(path / f"checkpoint-{STEPS}") for path in (unbroken, folder / f"{name}-broken"))
    for files in (one, two):
        del files["README.md"], files["manifest.json"], files["manifest.json.sha256"]  # name the run
    assert one == two


def test_a_killed_process_loses_nothing(folder: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from sengi.recipe_sources import resolve_recipe\n"
        "from sengi.train.observer import Observer\n"
        "from sengi.train.run import train\n"
        "class Dead(Observer):\n"
        "    def step(self, record):\n"
        "        if record['step'] == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(resolve_recipe(sys.argv[1]), Dead())"
    )
    recipe = write_recipe(folder, "lora-killed", save_total_limit=1)
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    assert warm.run(["-c", program, str(recipe)], env=env).returncode == -signal.SIGKILL
    assert not (folder / "lora-killed" / f"checkpoint-{STEPS}").exists()
    train(resolve_recipe(recipe))
    unbroken = trained(folder, "lora")
    assert dynamics(folder / "lora-killed") == dynamics(unbroken)
    name = f"checkpoint-{STEPS}/adapter_model.safetensors"
    assert (folder / "lora-killed" / name).read_bytes() == (unbroken / name).read_bytes()


def test_two_processes_train_the_same_adapter(folder: Path) -> None:
    kinds = ["lora", "qlora"] if importlib.util.find_spec("bitsandbytes") else ["lora"]
    recipes = [write_recipe(folder, f"{name}-two") for name in kinds]
    (folder / "talk").mkdir()
    command = [str(Path(__file__).with_name("rank_program.py")), str(folder / "talk"), *(f"2:{r}" for r in recipes)]
    done = warm.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, ranks=2, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in kinds:
        one, two = trained(folder, name), folder / f"{name}-two"
        assert len(list((two / f"checkpoint-{STEPS}" / "training_state").glob("rank-*"))) == 2
        for mine, wanted in zip(dynamics(two), dynamics(one), strict=True):
            assert mine["samples_sha256"] == wanted["samples_sha256"]
            for key in ("loss", "grad_norm"):
                assert mine[key] == pytest.approx(wanted[key], rel=1e-4), (name, mine["step"], key)
        found, wanted = (load_file(p / f"checkpoint-{STEPS}" / "adapter_model.safetensors") for p in (two, one))
        assert found.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key], rtol=1e-3, atol=1e-4)
        # what two saved, one continues
        shutil.rmtree(two / f"checkpoint-{STEPS}")
        train(resolve_recipe(folder / f"{name}-two.json"))
        for mine, line in zip(dynamics(two), dynamics(one), strict=True):
            assert mine["loss"] == pytest.approx(line["loss"], rel=1e-4)


def test_every_door_takes_an_adapter(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    words = f"questions:{folder / 'own.jsonl'},heldout:{folder / 'heldout.jsonl'}"
    lora = trained(
        folder, "lora-scored", eval_tasks=words.split(","), eval_steps=3, eval_data=str(folder / "heldout.jsonl"),
        eval_questions=[str(folder / "own.jsonl")],
    )  # fmt: skip
    last = lora / f"checkpoint-{STEPS}"
    scored = {int(p.name.split("-")[1]): json.loads(p.read_text()) for p in (lora / "evaluations").glob("*-tasks.json")}
    assert sorted(scored) == [0, 3, STEPS]

    def loss(step: int, kind: str) -> float:
        scores = json.loads((lora / "evaluations" / f"step-{step:08d}-{kind}.json").read_text())["scores"]
        return next(row["value"] for row in scores if row["metric"] == "loss" and row["group"] == "all")

    for step in scored:  # the model in memory and the folder that others load say the same
        assert loss(step, "tasks") == pytest.approx(loss(step, "heldout"), rel=1e-5)
    assert loss(STEPS, "tasks") < loss(0, "tasks") - 0.1
    capsys.readouterr()
    assert run(["eval", str(lora), "--tasks", words]) == 0
    assert run(["eval", str(last), "--tasks", words]) == 0
    assert f"{loss(STEPS, 'tasks'):.4g}" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is 1 plus 1?\n"))
    assert run(["chat", str(last), "--max-new-tokens", "4"]) == 0
    assert run(["report", str(lora)]) == 0
    assert run(["plan", str(folder / "lora-scored.json")]) == 0
    assert "of rank 3 on all-linear, the model frozen" in " ".join(capsys.readouterr().out.split())


def test_export_merges_or_copies(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lora = trained(folder, "lora")
    last = lora / f"checkpoint-{STEPS}"
    assert run(["export", str(lora), "--output", str(tmp_path / "new" / "copy")]) == 0
    files = content(last)
    copied = {name: data for name, data in content(tmp_path / "new" / "copy").items() if "manifest" not in name}
    assert copied == {n: d for n, d in files.items() if "manifest" not in n and not n.startswith("training_state")}
    assert run(["export", str(last), "--merge", "--output", str(tmp_path / "merged")]) == 0
    ids = torch.arange(5, 40)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        adapted = AutoModelForCausalLM.from_pretrained(last)(ids).logits
        torch.testing.assert_close(merged(ids).logits, adapted, rtol=1e-4, atol=1e-4)
        assert torch.equal(load_model(tmp_path / "merged")(ids).logits, merged(ids).logits)
    # it is what a whole model's checkpoint is, but for the weights' values
    whole = trained(folder, "whole", use_peft=False, lora_r=32) / f"checkpoint-{STEPS}"
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "merged" / name).read_bytes() == (whole / name).read_bytes(), name
    shapes = [{n: t.shape for n, t in load_file(f / "model.safetensors").items()} for f in (tmp_path / "merged", whole)]
    assert shapes[0] == shapes[1]
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == "<|im_end|>"
    # a whole model is copied out, too
    assert run(["export", str(whole), "--output", str(tmp_path / "whole")]) == 0
    assert torch.equal(load_model(tmp_path / "whole")(ids).logits, load_model(whole)(ids).logits)


def test_merged_weights_have_the_type_of_the_base(folder: Path, tmp_path: Path) -> None:
    # an adapter of one element, so that its effect on each weight is known
    model = load_model(folder / "model")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / "model" / name, tmp_path / "base" / name)
    lora = trained(folder, "lora-half", model_name_or_path=str(tmp_path / "base"))
    name = "model.layers.1.mlp.up_proj.weight"
    base = load_file(tmp_path / "base" / "model.safetensors")[name].float()
    adapter = load_file(lora / f"checkpoint-{STEPS}" / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name.removesuffix('weight')}lora_{x}.weight"] for x in "AB")
    exact = base + 32 / 3 * b @ a  # W + alpha / r B A
    for dtype, kind in ((None, torch.bfloat16), ("float32", torch.float32)):
        export_folder(lora, tmp_path / str(dtype), merge=True, dtype=dtype)  # type: ignore[arg-type]
        found = load_file(tmp_path / str(dtype) / "model.safetensors")[name]
        assert found.dtype == kind
        torch.testing.assert_close(found, exact.to(kind), rtol=1e-2 if dtype is None else 1e-5, atol=1e-6)


def test_what_cannot_be_exported_is_said(folder: Path, tmp_path: Path) -> None:
    lora = trained(folder, "lora")
    whole = trained(folder, "whole", use_peft=False, lora_r=32) / f"checkpoint-{STEPS}"
    with pytest.raises(InputError, match="is a whole model, there is nothing to merge; leave --merge out"):
        export_folder(whole, tmp_path / "a", merge=True)
    with pytest.raises(InputError, match="without --merge keeps the weights as they are"):
        export_folder(whole, tmp_path / "a", dtype="float32")
    with pytest.raises(InputError, match="exists already and is never overwritten"):
        export_folder(whole, folder)
    copy = tmp_path / "checkpoint-6"
    shutil.copytree(lora / f"checkpoint-{STEPS}", copy)
    with (copy / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: the content changed since it was saved"):
        export_folder(copy, tmp_path / "a", merge=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    with pytest.raises(InputError, match="no checkpoint in it to export"):
        export_folder(tmp_path / "run", tmp_path / "a")
    assert not [p for p in tmp_path.iterdir() if p.name in ("a",) or p.name.startswith(".tmp")]


def test_a_continued_run_refuses_another_base(folder: Path, tmp_path: Path) -> None:
    write_tiny_folder(tmp_path / "model")
    recipe = resolve_recipe(write_recipe(folder, "lora-moved", model_name_or_path=str(tmp_path / "model")))
    with pytest.raises(RuntimeError, match="crash"):
        train(recipe, Broken(3))
    write_tiny_folder(tmp_path / "model", seed=1)
    with pytest.raises(ModelError, match=r"was trained on a base of fingerprint .*restore the base, or choose another"):
        train(recipe)


def test_bad_targets_leave_no_run_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(folder, "lora-bad", lora_target_modules=["q_porj"])
    assert run(["train", str(recipe)]) == 2
    assert "'q_porj' is no linear layer of LlamaForCausalLM; there are down_proj, gate_proj" in capsys.readouterr().err
    assert not (folder / "lora-bad").exists()
    adapter = trained(folder, "lora") / f"checkpoint-{STEPS}"
    assert run(["train", str(write_recipe(folder, "lora-bad", model_name_or_path=str(adapter)))]) == 2
    assert "holds an adapter; make a model of it and its base" in capsys.readouterr().err


def test_the_plan_says_where_the_evidence_is_of_full_fine_tuning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(folder, "lora-plan", preset="lab")
    values = json.loads(recipe.read_text())
    for key in ("learning_rate", "effective_batch_size"):
        del values[key]

    def said(**more: Any) -> tuple[list[str], dict[str, str]]:
        recipe.write_text(json.dumps(values | more))
        capsys.readouterr()
        assert run(["plan", str(recipe), "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert not any("rough guess" in note for note in plan["warnings"])  # the memory of an adapter is traced
        return [note for note in plan["warnings"] if "full fine-tuning" in note], plan["reasons"]

    notes, _ = said()
    assert "learning_rate 2e-05 is of preset lab" in notes[0]
    assert "set learning_rate: 0.0002" in notes[0]
    assert "effective_batch_size 3,840 is for full fine-tuning" in notes[1]
    notes, reasons = said(preset=None)
    assert len(notes) == 1
    assert reasons["learning_rate"].startswith("LoRA Without Regret")
    assert said(learning_rate=2e-5, effective_batch_size=8)[0] == []
    assert said(use_peft=False, lora_r=32)[0] == []
