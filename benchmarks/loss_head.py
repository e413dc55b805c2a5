"""The loss head: ours beside torch's linear_cross_entropy (chunked and plain) and, on a GPU that has it, Liger's.

    python -m benchmarks.loss_head [--json] [--repeats 5] [--rounds 2] [--targets 256 1024 4096]

Forward and backward of one micro-batch's supervised targets: bfloat16 or float32 products over float32 weights, whose
gradient is added up in float32 as training does. Each row is a process of its own, so that its memory is its own; rows
of one size run one after the other, in ``--rounds`` rounds. Errors are against float32 products and logits as a whole.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from benchmarks.table import Table, show
from sengi.environment import ask_for_huge_pages
from sengi.model.head import LogitRule, supervised_loss

Loss = Callable[[Tensor, nn.Linear, Tensor, torch.dtype], Tensor]


def _ours(hidden: Tensor, head: nn.Linear, targets: Tensor, dtype: torch.dtype) -> Tensor:
    weights = torch.full(targets.shape, 1 / len(targets), device=hidden.device)
    into = head.weight.grad if hidden.device.type == "cpu" else None  # as one process on a CPU does
    with torch.autocast(hidden.device.type, dtype, enabled=dtype != torch.float32):
        return supervised_loss(hidden, head, targets, weights, LogitRule(), into)[0]


def _torch_chunked(hidden: Tensor, head: nn.Linear, targets: Tensor, dtype: torch.dtype) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return nn.functional.linear_cross_entropy(hidden.to(dtype), head.weight.to(dtype), targets, options=options).float()


def _torch_plain(hidden: Tensor, head: nn.Linear, targets: Tensor, dtype: torch.dtype) -> Tensor:
    return cross_entropy(linear(hidden.to(dtype), head.weight.to(dtype)).float(), targets)


def _liger(hidden: Tensor, head: nn.Linear, targets: Tensor, dtype: torch.dtype) -> Tensor:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

    result: Tensor = Liger.apply(hidden.to(dtype), head.weight.to(dtype), targets)[0]
    return result.float()


HEADS: dict[str, Loss] = {
    "ours": _ours,
    "torch, chunked": _torch_chunked,
    "torch, plain": _torch_plain,
    "Liger": _liger,
}


def available() -> list[str]:
    """Names of the heads that run here."""
    has_liger = torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None
    has_torch = hasattr(torch.nn, "LinearCrossEntropyOptions")  # since 2.13
    return [name for name in HEADS if (name != "Liger" or has_liger) and (name != "torch, chunked" or has_torch)]


def measure(name: str, targets: int, dtype: str, hidden_size: int, vocab: int, repeats: int) -> dict[str, float]:
    """Seconds, memory and errors of one head, in this process."""
    ask_for_huge_pages()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = nn.Linear(hidden_size, vocab, bias=False, device=device)
    weight_grad = head.weight.grad = torch.zeros_like(head.weight)
    hidden = torch.randn(targets, hidden_size, device=device)
    wanted = torch.randint(vocab, (targets,), device=device)
    before = _memory(device)

    def once(compute: Loss, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        x = hidden.clone().requires_grad_()
        loss = compute(x, head, wanted, kind)
        loss.backward()
        assert x.grad is not None
        return loss.detach(), x.grad

    seconds = []
    for _ in range(repeats + 1):
        weight_grad.zero_()
        started = time.perf_counter()
        loss, grad = once(HEADS[name], getattr(torch, dtype))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = _memory(device) - before
    found = weight_grad.clone()
    weight_grad.zero_()
    exact, exact_grad = once(_torch_plain, torch.float32)
    return {
        "seconds": statistics.median(seconds[1:]),  # the first one also makes what is kept
        "bytes": peak,
        "loss_error": abs(float(loss - exact)),
        "hidden_error": float((grad - exact_grad).norm() / exact_grad.norm()),
        "weight_error": float((found - weight_grad).norm() / weight_grad.norm()),
    }


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each row")
    parser.add_argument("--targets", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--only", nargs=3, metavar=("HEAD", "TARGETS", "DTYPE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.only:
        name, targets, dtype = given.only
        print(json.dumps(measure(name, int(targets), dtype, given.hidden, given.vocab, given.repeats)))
        return
    rows = []
    for dtype in ("bfloat16", "float32"):
        for targets in given.targets:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in available()}
            for _ in range(given.rounds):
                for name, seen in runs.items():
                    seen.append(_in_a_process(name, targets, dtype, given))
            ours = statistics.median(run["seconds"] for run in runs["ours"])
            rows += [_row(name, targets, dtype, seen, ours) for name, seen in runs.items()]
    columns = (
        "products",
        "targets",
        "head",
        "ms",
        "least",
        "most",
        "times ours",
        "MB",
        "loss error",
        "gradient errors",
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    note = (
        f"hidden size {given.hidden}, vocabulary {given.vocab:,}, {device}, torch {torch.__version__}; MB beside inputs"
    )
    show([Table("Loss heads, forward and backward", columns, rows, [note])], given.json)


def _in_a_process(name: str, targets: int, dtype: str, given: Any) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loss_head", "--only", name, str(targets), dtype]
    for key in ("repeats", "hidden", "vocab"):
        command += [f"--{key}", str(getattr(given, key))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _row(name: str, targets: int, dtype: str, runs: list[dict[str, float]], ours: float) -> tuple[Any, ...]:
    seconds = sorted(run["seconds"] for run in runs)
    middle = statistics.median(seconds)
    errors = f"{runs[0]['hidden_error']:.1e}, {runs[0]['weight_error']:.1e}"
    megabytes = int(statistics.median(run["bytes"] for run in runs) / 1e6)
    spread = (round(x * 1e3, 1) for x in (middle, seconds[0], seconds[-1]))
    return (dtype, targets, name, *spread, round(middle / ours, 2), megabytes, f"{runs[0]['loss_error']:.1e}", errors)


if __name__ == "__main__":
    main()
