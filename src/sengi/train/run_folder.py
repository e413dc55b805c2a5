"""The run folder as training writes it: recipe, plan, environment, status, dynamics, evaluations.

Only rank 0 holds one. Readers (report, studies, trackers) use the files; nothing else is shared with them.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import yaml

from sengi import storage
from sengi.errors import InputError
from sengi.evaluate import run_evaluations
from sengi.recipe import Recipe
from sengi.recipe_sources import ResolvedRecipe

HEARTBEAT = 5.0  # seconds between rewrites of status.json while nothing else happens
FIRST_WORD = 1.5  # seconds that rank 0 has to tell its cause before another rank does
# What may change between two calls on one folder, because no weight depends on it
FREE_KEYS = frozenset(
    {
        "output_dir",
        "max_tokens_per_device",
        "gradient_checkpointing",
        "torch_compile",
        "fsdp_sharding_strategy",
        "fsdp_reshard_after_forward",
        "fsdp_gradient_reduction",
        "save_steps",
        "save_samples",
        "save_total_limit",
        "save_in_background",
        "eval_data",
        "eval_questions",
        "eval_tasks",
        "eval_steps",
        "eval_samples",
        "eval_limit",
        "eval_num_fewshot",
        "eval_data_root",
        "eval_apply_chat_template",
        "eval_process",
        "on_alarm",
        "report_to",
        "preset",
    }
)


# Decide which checkpoint starts a phase, where a score chooses it
CHOOSING_KEYS = frozenset(
    {
        "eval_data",
        "eval_tasks",
        "eval_steps",
        "eval_samples",
        "eval_limit",
        "eval_num_fewshot",
        "eval_data_root",
        "eval_apply_chat_template",
    }
)


def has_begun(folder: Path) -> bool:
    """Whether a step was trained in ``folder``; until then recipe and data may still be corrected."""
    log = folder / "dynamics.jsonl"
    return (log.exists() and log.stat().st_size > 0) or next(folder.glob("checkpoint-*"), None) is not None


def check_same_recipe(folder: Path, resolved: ResolvedRecipe) -> list[str]:
    """Compare with the recipe that ``folder`` was started with.

    Returns:
        Sentences about keys that changed and may change.

    Raises:
        InputError: a key that decides the weights changed; shows every difference.
    """
    path = folder / "recipe.yaml"
    if not path.exists() or not has_begun(folder):
        return []
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    now = resolved.recipe.model_dump(mode="json")
    for key in now.keys() - before.keys():  # a key that is younger than the run had its default then
        before[key] = Recipe.model_fields[key].get_default(call_default_factory=True)
    changed = [key for key in now if before[key] != now[key]]
    free = FREE_KEYS - CHOOSING_KEYS if resolved.recipe.phasing.select != "last" else FREE_KEYS
    bad = [f"{key} was {before[key]!r}, is {now[key]!r}" for key in changed if key not in free]
    if bad:
        raise InputError(
            f"{folder}: holds a run of another recipe ({'; '.join(bad)}); restore the values to continue it, or "
            "choose another output_dir"
        )
    return [f"{key} was {before[key]!r}, is now {now[key]!r}" for key in changed if key != "output_dir"]


def check_same_data(folder: Path, fingerprint: str) -> None:
    """Compare with the data that the run in ``folder`` was begun with, if there is one.

    Raises:
        InputError: data, tokenizer or template changed since the run began.
    """
    earlier = read_plan(folder)
    if earlier and earlier.get("data_fingerprint") != fingerprint:
        raise InputError(
            f"{folder}: data, tokenizer or chat template changed since this run began; restore them to continue it, "
            "or choose another output_dir"
        )


def read_plan(folder: Path) -> dict[str, Any] | None:
    """plan.json of a run that has begun, or None."""
    path = folder / "plan.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() and has_begun(folder) else None


class RunFolder:
    """Writes the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log: storage.AppendLog | None = None
        self._status: dict[str, Any] = {
            "state": "running",
            "reason": "",
            "started": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self._written = 0.0

    def write_request(self, resolved: ResolvedRecipe, plan: dict[str, Any], environment: dict[str, Any]) -> None:
        """recipe.yaml, plan.json and environment.json."""
        storage.write_json(self.path / "environment.json", environment)
        storage.write_json(self.path / "plan.json", plan)
        storage.write_file(self.path / "recipe.yaml", resolved.to_yaml().encode())

    def write_plan(self, plan: dict[str, Any]) -> None:
        """plan.json again, after the run had to change it."""
        storage.write_json(self.path / "plan.json", plan)

    def status(self, now: bool = True, **facts: Any) -> None:
        """Update status.json; with ``now=False`` only when the last write is HEARTBEAT seconds old."""
        self._status.update(facts, heartbeat=time.time())
        if now or time.monotonic() - self._written >= HEARTBEAT:
            storage.write_json(self.path / "status.json", self._status)
            self._written = time.monotonic()

    def last_word(self, **facts: Any) -> None:
        """Update status.json from a rank that does not keep it, because the one that does may be gone.

        What that one knew stays, and a cause that it told since this run began is not replaced. It is given time to
        tell it: ranks that lose each other notice it at the same moment.
        """
        time.sleep(FIRST_WORD)
        path = self.path / "status.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else dict(self._status)
        if kept.get("state") == "running" or kept.get("heartbeat", 0.0) < self._status["started"]:
            storage.write_json(path, {**kept, **facts, "heartbeat": time.time()})

    def open_log(self, step: int) -> list[str]:
        """Open dynamics.jsonl to go on after ``step``; later lines belong to steps that will be done again.

        Returns:
            Sentences about what was repaired.
        """
        path = self.path / "dynamics.jsonl"
        self._log = storage.AppendLog(path)
        notes = (
            [f"dynamics.jsonl: cut a half-written line of {self._log.torn_bytes} bytes"] if self._log.torn_bytes else []
        )
        lines = storage.read_lines(path)
        keep = [line for line in lines if line.get("step", 0) <= step]
        if [line.get("step") for line in keep] != list(range(1, step + 1)):
            raise InputError(
                f"{path}: does not have exactly one line for each of the {step} steps done; restore the file, or "
                "choose another output_dir"
            )
        if len(keep) < len(lines):
            self._log.close()
            storage.write_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in keep).encode())
            self._log = storage.AppendLog(path)
            notes.append(
                f"steps {step + 1} to {lines[-1]['step']} were done after the last checkpoint; doing them again"
            )
        return notes

    def log_step(self, record: dict[str, Any]) -> None:
        """Append one line to dynamics.jsonl."""
        assert self._log is not None
        self._log.append(record)

    def sync_log(self) -> None:
        """Flush dynamics.jsonl; before a checkpoint, so that it never knows of steps that the log lost."""
        assert self._log is not None
        self._log.sync()

    def write_evaluation(self, step: int, kind: str, result: dict[str, Any], items: list[dict[str, Any]]) -> None:
        """evaluations/step-<step>-<kind>.json and, where there are items, its .items.jsonl."""
        run_evaluations.write_evaluation(self.path, step, kind, result, items)

    def has_evaluation(self, step: int, kind: str, data: str) -> bool:
        """Whether that evaluation is there already, on the same data (a fingerprint)."""
        return run_evaluations.has_evaluation(self.path, step, kind, data)
