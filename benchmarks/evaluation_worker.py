"""One backend on one block of questions, in a process of its own (started by benchmarks.evaluation).

    python -m benchmarks.evaluation_worker '{"backend": "sengi", "tasks": [...], ...}' OUT.json

Time is what the backend spends in its own calls (log-likelihoods, generation): tokenizing, forwards, sorting. Loading
the model and rendering prompts are lm-eval's and the same on both sides. Memory is the peak of the whole process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sengi.harness.tasks import LoadedTasks

CALLS = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def main() -> None:
    """Score one block and write what came out."""
    request, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    from sengi.harness.tasks import load_tasks

    loaded = load_tasks(request["tasks"], Path(request["data_root"]), num_fewshot=request["num_fewshot"])
    model = _backend(request)
    spent = {"seconds": 0.0, "cpu_seconds": 0.0}
    for name in CALLS:
        setattr(model, name, _timed(getattr(model, name), spent))
    samples = _evaluate(model, loaded, request)
    answers = {
        task: [_answer(sample) for sample in rows if sample["filter"] in ("none", rows[0]["filter"])]
        for task, rows in samples.items()
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = {**spent, "peak_bytes": peak, "threads": torch.get_num_threads(), "answers": answers}
    out.write_text(json.dumps(facts))


def _backend(request: dict[str, Any]) -> Any:
    if request["backend"] == "sengi":
        from sengi.harness.lm import SengiLM

        tokens = request["batch_tokens"]
        return SengiLM(request["model"], batch_tokens=tokens, progress=lambda done, total, kind: None)
    from lm_eval.models.huggingface import HFLM

    batch = request["batch_size"]
    return HFLM(pretrained=request["model"], dtype="float32", device="cpu", batch_size=batch)


def _evaluate(model: Any, loaded: LoadedTasks, request: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    from sengi.harness.lm_eval_tasks import DEFAULT_OTHER_SEED, evaluate

    for task in loaded.tasks.values():
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    tasks = {"tasks": loaded.tasks, "groups": loaded.groups}
    results = evaluate(model, tasks, limit=request["limit"], bootstrap_iters=0, log_samples=True)
    return dict(results["samples"])


def _timed(call: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return call(*args, **kwargs)
        finally:
            spent["seconds"] += time.perf_counter() - wall
            spent["cpu_seconds"] += time.process_time() - cpu

    return timed


def _answer(sample: dict[str, Any]) -> dict[str, Any]:
    """Log-likelihoods of the choices, or the text; ``prompt`` proves that both sides were asked the same."""
    first = [response[0] for response in sample["resps"]]
    facts = {"id": sample["doc_id"], "prompt": sample["prompt_hash"]}
    if isinstance(first[0], str):
        return {**facts, "text": first[0]}
    return {**facts, "sums": [float(value[0]) for value in first], "greedy": [bool(value[1]) for value in first]}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
