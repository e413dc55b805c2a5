"""A run whose training data holds questions that it is scored on says so: in plan, folder and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.model.tiny_folder import write_tiny_folder

from sengi.cli.app import run as command


def test_a_run_says_which_questions_stand_in_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_folder(tmp_path / "model")
    answer = {"role": "assistant", "content": "Six."}
    chats = [{"messages": [{"role": "user", "content": f"What is {n} plus 3?"}, answer]} for n in range(8)]
    questions = [{"question": "What is 3 plus 3?", "answer": "6"}, {"question": "Why is that so?", "answer": "So."}]
    for name, rows in (("train", chats), ("own", questions), ("heldout", [chats[5], *chats[6:]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model_name_or_path": str(tmp_path / "model"),
        "data": [{"path": str(tmp_path / "train.jsonl")}],
        "eval_data": [{"path": str(tmp_path / "heldout.jsonl")}],
        "eval_questions": [str(tmp_path / "own.jsonl")],
        "output_dir": str(tmp_path / "run"),
        "effective_batch_size": 4,
        "num_train_epochs": 1,
        "max_tokens_per_device": 128,
        "dtype": "float32",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    sentence = "4 of 5 evaluation questions stand in the training data"
    assert command(["plan", str(tmp_path / "recipe.yaml")]) == 0
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert command(["train", str(tmp_path / "recipe.yaml")]) == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [line for line in plan["warnings"] if line.startswith(sentence)]
    kept = json.loads((tmp_path / "run" / "contamination.json").read_text())
    found = {Path(name).name: entry["found_rows"] for name, entry in kept.items()}
    assert found == {"own.jsonl": ["1"], "heldout.jsonl": ["1", "2", "3"]}
    assert command(["report", str(tmp_path / "run")]) == 0
    assert sentence in (tmp_path / "run" / "report.md").read_text()
