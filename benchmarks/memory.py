"""The forecast of memory and time beside what a run really took, each configuration in a process of its own.

    python -m benchmarks.memory [--json] [--only WORD] [--data FILE... --tokenizer FOLDER]

A run is ``sengi train`` of a few steps on random weights, from the files of benchmarks/memory_cases.py, with everything
that belongs to it (loading, checkpoint, export). Measured is the greatest resident set of any of its processes (VmHWM,
by wait4), forecast is what its plan.json said before the weights were read. Seconds are those of all steps. With
``--data`` it trains on these files, in the tokens of a tokenizer that the models of the chosen configurations have room
for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory_cases import Case, Real
from benchmarks.table import Table, show

GB = 1e9
TOLERANCE = 0.10
CASES = (
    Case("llama 52M, tied", 1024, 4, fitted=True),
    Case("llama 52M, tied", 2048, 4, fitted=True),
    Case("llama 67M, untied", 1024, 4, ranks=2, fitted=True),
    Case("llama 52M, tied", 2048, 4, dial="selective", fitted=True),
    Case("llama 52M, tied", 2048, 4, dial="full", fitted=True),
    Case("llama 52M, tied", 1024, 4, optim="adamw_anyprecision", fitted=True),
    Case("llama 52M, tied", 1024, 4, optim="adamw_bnb_8bit"),
    Case("llama 52M, tied", 2048, 4, use_peft=True, fitted=True),
    Case("llama 67M, untied", 1024, 4),
    Case("llama 52M, tied", 1024, 4, ranks=2, fitted=True),
    Case("llama 52M, tied", 1024, 4, ranks=2, dial="full", fitted=True),
    Case("qwen2 46M, tied", 1024, 4),
    Case("qwen3 69M, tied", 1024, 4),
    Case("gemma3 65M, tied", 1024, 4),
    Case("granite 43M, tied", 1024, 4),
    Case("phi3 67M, untied", 1024, 4),
    Case("mistral 62M, wide", 1024, 2),
    Case("llama 52M, tied", 1024, 4, dtype="bfloat16", fitted=True),
    Case("llama 52M, tied", 2048, 4, dtype="bfloat16", fitted=True),
    Case("llama 67M, untied", 1024, 4, dtype="bfloat16", fitted=True),
    Case("llama 67M, untied", 1024, 4, ranks=2, dtype="bfloat16"),
    Case("llama 52M, tied", 2048, 4, dial="full", dtype="bfloat16", fitted=True),
    Case("llama 52M, tied", 2048, 4, use_peft=True, dtype="bfloat16", fitted=True),
    Case("qwen3 69M, tied", 1024, 4, dtype="bfloat16", fitted=True),
    Case("gemma3 65M, tied", 1024, 4, dtype="bfloat16", fitted=True),
    Case("llama 135M, tied", 1024, 8, dtype="float32"),
    Case("llama 135M, tied", 1024, 8, dtype="bfloat16", fitted=True),
    Case("llama 135M, tied", 2048, 16, dtype="bfloat16", fitted=True),
    Case("llama 135M, tied", 1024, 8, use_peft=True, fitted=True),
    Case("llama 135M, tied", 1024, 8, use_peft=True, dtype="bfloat16", fitted=True),
    Case("granite 43M, tied", 1024, 4, dtype="bfloat16"),
    Case("phi3 67M, untied", 1024, 4, dtype="bfloat16"),
    Case("mistral 62M, wide", 1024, 2, dtype="bfloat16"),
    Case("qwen2 46M, tied", 2048, 4, use_peft=True, dtype="bfloat16"),
    Case("mistral 62M, wide", 2048, 4, use_peft=True),
    Case("llama 67M, untied", 2048, 4, use_peft=True, dtype="bfloat16", stored="bfloat16"),
    Case("llama 135M, tied", 1024, 8, use_peft=True, dtype="bfloat16", stored="bfloat16"),
    Case("llama 52M, tied", 2048, 4, dtype="bfloat16", compiled=True, fitted=True),
    Case("qwen3 69M, tied", 1024, 4, dtype="bfloat16", compiled=True, fitted=True),
    Case("llama 135M, tied", 2048, 16, dtype="bfloat16", compiled=True, fitted=True),
)


@dataclass(frozen=True)
class Result:
    """Peak in bytes and seconds of all steps, forecast and measured."""

    forecast: float
    measured: float
    forecast_seconds: float
    seconds: float


def measure(case: Case, real: Real | None = None) -> Result:
    """Run a case."""
    with tempfile.TemporaryDirectory(prefix="sengi-memory-") as name:
        folder = Path(name)
        # in a child: what this process held would count as the next child's, which begins as a copy of it
        make = f"from benchmarks.memory_cases import *; write_files({case!r}, Path({name!r}), {real!r})"
        environment = {**os.environ, "SENGI_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
        subprocess.run([sys.executable, "-c", make], check=True, env=environment, capture_output=True)
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case.ranks}"]
        command = [
            sys.executable,
            *(launch if case.ranks > 1 else []),
            "-m",
            "sengi",
            "train",
            str(folder / "recipe.yaml"),
        ]
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise SystemExit(f"{case}: failed\n{(folder / 'output').read_text()[-2000:]}")
        plan = json.loads((folder / "run" / "plan.json").read_text())
        steps = [json.loads(line) for line in (folder / "run" / "dynamics.jsonl").read_text().splitlines()]
        return Result(
            float(plan["forecast"]["memory"]["peak"]),
            usage.ru_maxrss * 1024.0,
            float(plan["forecast"]["forecast_seconds"]),
            sum(step["step_seconds"] for step in steps),
        )


def rows_of(cases: Sequence[Case], real: Real | None = None) -> list[tuple[object, ...]]:
    """A row for each case, told as it comes."""
    rows: list[tuple[object, ...]] = []
    for case in cases:
        found = measure(case, real)
        off = found.forecast / found.measured - 1
        rows.append(
            (
                case.shape + (f", stored in {case.stored}" if case.stored != "float32" else ""),
                case.budget,
                case.dial + (", compiled" if case.compiled else ""),
                "LoRA" if case.use_peft else case.optim,
                case.dtype,
                case.ranks,
                round(found.forecast / GB, 3),
                round(found.measured / GB, 3),
                f"{off:+.1%}",
                "fitted" if case.fitted else "checked",
                round(found.forecast_seconds, 1),
                round(found.seconds, 1),
            )
        )
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", default="", help="configurations whose description has this word")
    parser.add_argument("--data", nargs="+", default=[], metavar="FILE", help="real conversations in place of digits")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="for --data")
    given = parser.parse_args(arguments)
    if bool(given.data) != bool(given.tokenizer):
        parser.error("--data and --tokenizer go together")
    real = Real(tuple(given.data), given.tokenizer) if given.data else None
    cases = [case for case in CASES if given.only in repr(case)]
    columns = ("model", "tokens", "dial", "optim", "dtype", "ranks", "forecast GB", "measured GB", "off", "constants")
    times = ("forecast s", "seconds")
    rows = rows_of(cases, real)
    within = sum(abs(float(str(row[8]).rstrip("%"))) <= 100 * TOLERANCE for row in rows)
    notes = [
        f"{within} of {len(rows)} within {TOLERANCE:.0%}; CPU, one thread a process, a step of several "
        "micro-batches; GB are 10^9 bytes, of the process that took most"
    ]
    show([Table("A run: forecast and measured", (*columns, *times), rows, notes)], given.json)


if __name__ == "__main__":
    main()
