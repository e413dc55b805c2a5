"""What the crash tests share: a run small enough to kill a thousand times, and how two runs are compared.

The kills and faults happen in children of a fork server (crash_server.py), a process that has imported torch
once, has one thread, and holds the model in memory. :func:`ask` starts it on first use and gives it a job.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIMING = {"tokens_per_second", "mfu", "step_seconds", "data_wait_seconds", "peak_memory_bytes"}
QUESTIONS = ["What is {}?", "Is {} even?", "Say {} twice.", "Which number follows {}?"]
ANSWERS = ["It is {}.", "{} is what you asked for.", "{0} {0}", "After {0} comes another one."]


def environment(folder: Path) -> dict[str, str]:
    """One thread, no GPU, no hub, its own cache: what makes two runs comparable bit by bit."""
    mine = {
        "COLUMNS": "300",
        "SENGI_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SENGI_", "COVERAGE"))}
    return inherited | mine


def write_small_model(folder: Path) -> None:
    """A Llama of 4,000 parameters: a checkpoint is 100 kB."""
    sys.path.append(str(HERE.parent / "model"))
    import tiny_folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sengi.model.tokenizer_files import save_tokenizer

    tokenizer = tiny_folder.tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def write_rows(path: Path, first: int, count: int) -> Path:
    """Conversations about numbers, of different lengths."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": QUESTIONS[n % 4].format(n)},
                {"role": "assistant", "content": ANSWERS[n % 4].format(n * 7)},
            ]
        }
        for n in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_recipe(folder: Path, **more: Any) -> Path:
    """A recipe in ``folder`` over its own data files; the model folder must be ``folder/model``."""
    values: dict[str, Any] = {
        "model_name_or_path": str(folder / "model"),
        "data": [{"path": str(write_rows(folder / "train.jsonl", 0, 37))}],
        "eval_data": [{"path": str(write_rows(folder / "heldout.jsonl", 500, 4))}],
        "output_dir": str(folder / "run"),
        "effective_batch_size": 3,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 100,
        "max_steps": 12,
        "max_tokens_per_device": 64,
        "save_steps": 1,
        "save_total_limit": 1,
        "dtype": "float32",
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values | more))  # JSON is YAML
    return path


def dynamics(run: Path) -> list[dict[str, Any]]:
    """The lines of dynamics.jsonl without what a clock or the memory decides."""
    lines = [json.loads(line) for line in (run / "dynamics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def evaluations(run: Path) -> dict[str, Any]:
    """Scores by file name."""
    return {path.name: json.loads(path.read_text())["scores"] for path in (run / "evaluations").glob("*.json")}


def choices(run: Path) -> str:
    """phases.json; empty in a stacked run."""
    path = run / "phases.json"
    return path.read_text() if path.exists() else ""


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint: weights, moments, layout, manifest."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(run: Path) -> list[str]:
    """Names that only an interrupted write leaves."""
    places = [run, run / "evaluations"]
    return [p.name for place in places if place.is_dir() for p in place.iterdir() if p.name.startswith(".")]


def differences(run: Path, unbroken: Path, step: int) -> list[str]:
    """What differs between a finished run and the unbroken one: dynamics, scores, checkpoint, left-overs."""
    found = []
    if dynamics(run) != dynamics(unbroken):
        found.append("dynamics.jsonl")
    if evaluations(run) != evaluations(unbroken):
        found.append("evaluations")
    ours, theirs = (content(folder / f"checkpoint-{step}") for folder in (run, unbroken))
    found += [
        f"checkpoint: {name}" for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)
    ]
    if choices(run) != choices(unbroken):
        found.append("phases.json")
    status = json.loads((run / "status.json").read_text())
    if (status["state"], status["step"]) != ("finished", step):
        found.append(f"status: {status['state']} at {status['step']}")
    return found + [f"left over: {name}" for name in leftovers(run)]


class _Server:
    """The fork server of this test process."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")  # kill -9 loses nothing that was written, on any file system: take the fast one
        place = memory if memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30 else None
        self._folder = tempfile.TemporaryDirectory(prefix="sengi-crash-", dir=place)
        self.root = Path(self._folder.name)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "crash_server.py"), str(self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # huge pages make a fork of 300 MB take 6 ms instead of 29
            env=environment(self.root) | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "PYTHONMALLOC": "malloc"},
        )
        atexit.register(self.stop)

    def ask(self, job: str, **arguments: Any) -> Any:
        """Send a job and wait for its result."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([job, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the fork server died; its traceback is in the captured stderr"
        answer, trace = json.loads(line)
        assert not trace, trace
        return answer

    def stop(self) -> None:
        """End the server and remove its folder."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


@cache
def server() -> _Server:
    """The server, started on first use; one for each test process."""
    return _Server()


def ask(job: str, **arguments: Any) -> Any:
    """Run a job of crash_server.py."""
    return server().ask(job, **arguments)


def seeded(number: int) -> int:
    """Seed of a random test, printed; ``SENGI_CRASH_SEED=n`` shifts all of them."""
    seed = number + int(os.environ.get("SENGI_CRASH_SEED", "0"))
    print(f"seed {seed}")
    return seed
