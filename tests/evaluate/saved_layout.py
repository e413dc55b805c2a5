"""Saved answers as lm-eval and our runs write them, with results that a test chooses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIME = "2026-01-02T03-04-05.678901"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample(task: str, doc_id: int, prompt: str = "Q: ", used: str = "none", **metrics: Any) -> dict[str, Any]:
    """One record of lm-eval 0.4.13."""
    doc = {"question": f"{task} {doc_id}?"}
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": "0",
        "arguments": {"gen_args_0": {"arg_0": f"{prompt}{doc['question']}", "arg_1": " a"}},
        "resps": [[["-1.0", "False"]]],
        "filtered_resps": [["-1.0", "False"]],
        "filter": used,
        "metrics": list(metrics),
        "doc_hash": digest(json.dumps(doc, indent=2)),
        "prompt_hash": digest(f"{prompt}{doc['question']}"),
        "target_hash": digest("0"),
        **metrics,
    }


def write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_samples(folder: Path, task: str, rows: Sequence[dict[str, Any]], time: str = TIME) -> Path:
    return write_lines(folder / f"samples_{task}_{time}.jsonl", rows)


def accuracies(task: str, right: Sequence[float], prompt: str = "Q: ") -> list[dict[str, Any]]:
    return [sample(task, k, prompt, acc=float(value)) for k, value in enumerate(right)]


def write_results(folder: Path, time: str = TIME, **content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"results_{time}.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def item(task: str, id_: str, metric: str, correct: float, **more: Any) -> dict[str, Any]:
    return {"task": task, "id": id_, "metric": metric, "correct": correct, "question": f"{task} {id_}?", **more}
