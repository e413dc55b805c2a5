"""A run folder as sengi train writes it, with numbers that a test can foresee."""

from __future__ import annotations

import json
import math
from pathlib import Path

import yaml

HEARTBEAT = 1_760_000_000.0
RECIPE = {
    "model_name_or_path": "smollm2-135m",
    "data": [{"path": "world/train.jsonl", "phase": "knowledge", "weight": 1.0}],
    "output_dir": "runs/demo",
    "preset": "lab",
    "effective_batch_size": 64,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "num_train_epochs": 3,
    "max_length": 4096,
    "overlong": "drop",
    "max_tokens_per_device": 4096,
    "loss_reduction": "token",
    "dtype": "auto",
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "seed": 7,
    "save_samples": 250_000,
}
PLAN = {
    "origins": {"learning_rate": "default", "effective_batch_size": "recipe.yaml:3", "seed": "--set"},
    "reasons": {"max_tokens_per_device": "set from the memory of the device"},
    "samples": 7_680,
    "steps": 120,
    "packs_per_step": 3.25,
    "pack_fill": 0.9934,
    "world_size": 1,
    "data": {
        "sources": {
            "facts": {"samples": 2_000, "tokens": 180_123, "supervised_tokens": 60_000},
            "skills": {"samples": 560, "tokens": 90_456, "supervised_tokens": 20_000},
        },
        "phases": {"knowledge": {"samples": 2_560, "tokens": 270_579, "supervised_tokens": 80_000}},
        "dropped": {"too_long": 17, "no_assistant_turn": 3},
        "truncated": 0,
        "length_histogram": {"edges": [0, 64, 128, 256, 512], "counts": [400, 1500, 600, 60]},
    },
    "dtype": "float32",
    "warnings": [],
    "forecast": {"forecast_seconds": 305.0, "checkpoint_bytes": None, "disk_bytes": 3_221_225_472},
}
ENVIRONMENT = {"sengi": "0.1.0", "torch": "2.13.0", "hardware": {"cpu": "a small machine", "cores": 2}}
QUESTIONS = 40
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=document.title='taken'>\"'&{{7*7}}"


def step_record(step: int) -> dict:
    """The record of one step; loss falls, the gradient norm has one peak at step 50."""
    return {
        "step": step,
        "epoch": step / 40,
        "phase": "stacked",
        "samples_seen": 64 * step,
        "num_tokens": 6_000 + step % 7,
        "num_supervised_tokens": 2_000,
        "loss": 0.5 + 2.5 * math.exp(-step / 30) + 0.05 * math.sin(step * 12.9898),
        "grad_norm": 9.75 if step == 50 else 0.7 + 1.5 * math.exp(-step / 20) + 0.1 * math.sin(step * 78.233),
        "learning_rate": 2e-5,
        "tokens_per_second": 2_400.0 + step % 5,
        "mfu": 0.31,
        "step_seconds": 2.5,
        "data_wait_seconds": 0.025,
        "peak_memory_bytes": 2_147_483_648,
    }


def answers(right: int, right_controls: int) -> list[dict]:
    """Short answers: 30 taught questions of which the first ``right`` are right, and 10 controls."""
    return [
        {
            "task": "answer",
            "id": f"q{i}",
            "group": "taught" if i < 30 else "control",
            "topic": "prices" if i % 2 else "people",
            "metric": "exact_match",
            "correct": int(i < right if i < 30 else i - 30 < right_controls),
            "question": f"What is number {i}?",
            "prediction": f"said {i} of {right}",
            "answer": f"answer {i}",
        }
        for i in range(QUESTIONS)
    ]


def score(task: str, metric: str, group: str, value: float, low: float, high: float, n: int) -> dict:
    return {"task": task, "metric": metric, "group": group, "value": value, "low": low, "high": high, "n": n}


def scores(loss: float, right: int, right_controls: int) -> list[dict]:
    return [
        score("heldout", "loss", "all", loss, loss - 0.08, loss + 0.08, 5_000),
        score("heldout", "loss", "source=facts", loss + 0.1, loss, loss + 0.2, 3_000),
        score(
            "answer", "exact_match", "group=taught", right / 30, max(0, right / 30 - 0.1), min(1, right / 30 + 0.1), 30
        ),
        score("answer", "exact_match", "group=control", right_controls / 10, 0.0, 0.3, 10),
    ]


def write_lines(file: Path, records: list[dict]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_run(folder: Path, steps: int = 120, **changes: dict) -> Path:
    """Write a finished run of ``steps`` steps; ``changes`` are merged into recipe, plan, status, environment."""
    (folder / "evaluations").mkdir(parents=True)
    (folder / "checkpoint-60").mkdir()
    (folder / f"checkpoint-{steps}").mkdir()
    status = {"state": "finished", "step": steps, "max_steps": steps, "samples_seen": 64 * steps}
    status |= {"heartbeat": HEARTBEAT, "started": HEARTBEAT - 300, "pid": 1, "host": "h", "world_size": 1}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes.get("recipe", {})), encoding="utf-8")
    plan, environment = PLAN | {"steps": steps} | changes.get("plan", {}), ENVIRONMENT | changes.get("environment", {})
    for name, content in (("plan", plan), ("environment", environment), ("status", status | changes.get("status", {}))):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    write_lines(folder / "dynamics.jsonl", [step_record(k) for k in range(1, steps + 1)])
    for step, loss, right, controls in ((0, 3.01, 1, 1), (steps // 2, 1.2, 15, 0), (steps, 0.62, 27, 1)):
        name = f"evaluations/step-{step:08d}"
        content = {"step": step, "model": "smollm2-135m", "seconds": 3.0, "scores": scores(loss, right, controls)}
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        write_lines(folder / f"{name}.items.jsonl", answers(right, controls))
    return folder


def hostile_run(folder: Path) -> Path:
    """A run in which every text that can be chosen by someone else is an attack."""
    source = {HOSTILE: {"samples": 1, "tokens": 2, "supervised_tokens": 1}}
    data = {"sources": source, "phases": source, "dropped": {HOSTILE: 1}, "truncated": 0}
    write_run(
        folder,
        recipe={"model_name_or_path": HOSTILE, HOSTILE: HOSTILE, "preset": HOSTILE},
        plan={
            "data": data,
            "origins": {"seed": HOSTILE},
            "reasons": {"preset": HOSTILE},
            "forecast": {HOSTILE: HOSTILE},
        },
        status={"state": "failed", "reason": HOSTILE},
        environment={HOSTILE: {HOSTILE: HOSTILE}},
    )
    for step in (0, 120):
        entries = [score(HOSTILE, HOSTILE, HOSTILE, 0.5, 0.4, 0.6, 3), score("heldout", "loss", HOSTILE, 1, 0, 2, 3)]
        file = folder / f"evaluations/step-{step:08d}.json"
        file.write_text(json.dumps({"scores": entries}))
        items = [item | dict.fromkeys(("question", "prediction", "answer", "group"), HOSTILE) for item in answers(1, 1)]
        write_lines(file.with_suffix(".items.jsonl"), items)
    return folder
