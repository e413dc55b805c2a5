"""How long training stands still for checkpoints that are written in the background.

    python -m benchmarks.save_pause [--json] [--shape "llama 135M, tied"] [--conversations 24] [--ranks 1 2]
                                    [--data FILE... --tokenizer FOLDER]

A run is ``sengi train`` with a checkpoint every second step, on random weights (benchmarks/memory_cases.py). The pause
is all the time that the main thread of a rank spends in saving: copying, asking the others whether they are done, and
publishing; the last checkpoint, for which training is over, is left out. Told is the rank that waits longest.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.memory_cases import Case, Real, write_files
from benchmarks.table import Table, parser, show

STEPS = 7  # with saves at 2, 4, 6 and the last


def _worker(recipe: str, out: str) -> None:
    """A rank of the run; it writes the seconds of each call of the saver to ``out`` with its rank behind."""
    from sengi.cli.app import main
    from sengi.train.background_save import Saver

    calls: list[dict[str, Any]] = []

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Saver, *args: Any, **named: Any) -> Any:
            begun, inner = time.perf_counter(), len(calls)
            try:
                return work(self, *args, **named)
            finally:
                del calls[inner:]  # a save that calls another of these counts once
                calls.append({"call": name, "wait": named.get("wait"), "seconds": time.perf_counter() - begun})

        return run

    for name in ("save", "poll"):
        setattr(Saver, name, timed(name, getattr(Saver, name)))
    sys.argv = ["sengi", "train", recipe]
    try:
        main()
    finally:
        Path(f"{out}-{os.environ.get('RANK', '0')}").write_text(json.dumps(calls), encoding="utf-8")


def measure(case: Case, real: Real | None) -> tuple[float, list[float], float]:
    """Seconds of the median step, those of each save, and those of all the asking and publishing for one save."""
    with tempfile.TemporaryDirectory(prefix="sengi-pause-") as name:
        folder = Path(name)
        recipe = write_files(case, folder, real)
        values = json.loads(recipe.read_text(encoding="utf-8"))
        values |= {"max_steps": STEPS, "num_train_epochs": 100, "save_steps": 2, "save_total_limit": 1}
        recipe.write_text(json.dumps(values), encoding="utf-8")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case.ranks}"]
        command = [sys.executable, *(launch if case.ranks > 1 else []), "-m", "benchmarks.save_pause"]
        done = subprocess.run(
            [*command, "--worker", str(recipe), str(folder / "calls")],
            env={**os.environ, "SENGI_CACHE": str(folder / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{case}: failed\n{done.stderr[-2000:]}")
        lines = (folder / "run" / "dynamics.jsonl").read_text(encoding="utf-8").splitlines()
        step = statistics.median(json.loads(line)["step_seconds"] for line in lines)
        ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("calls-*"))]
    assert len(ranks) == case.ranks
    saves = [[call["seconds"] for call in calls if call["call"] == "save" and not call["wait"]] for calls in ranks]
    asked = max(sum(call["seconds"] for call in calls if call["call"] == "poll") for calls in ranks)
    longest = [max(of_ranks) for of_ranks in zip(*saves, strict=True)]
    return step, longest, asked / len(longest)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--shape", default="llama 135M, tied", help="of benchmarks/memory_cases.py")
    options.add_argument("--conversations", type=int, default=24, help="of a step; there are 24 of digits")
    options.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    options.add_argument("--data", nargs="+", default=[], metavar="FILE", help="real conversations in place of digits")
    options.add_argument("--tokenizer", metavar="FOLDER", help="for --data")
    options.add_argument("--worker", nargs=2, help="for processes that this one starts")
    given = options.parse_args(arguments)
    if given.worker:
        _worker(*given.worker)
        return
    if bool(given.data) != bool(given.tokenizer):
        options.error("--data and --tokenizer go together")
    real = Real(tuple(given.data), given.tokenizer) if given.data else None
    rows: list[tuple[object, ...]] = []
    for ranks in given.ranks:
        case = replace(Case(given.shape, 1024, given.conversations), ranks=ranks, dtype="auto")
        step, saves, asked = measure(case, real)
        share = (statistics.median(saves) + asked) / step
        rows.append((ranks, step, saves[0], statistics.median(saves), asked, f"{share:.1%}"))
    columns = ("ranks", "step s", "first save s", "median save s", "asking and publishing s", "of a step")
    notes = [f"{given.shape}, {given.conversations} conversations a step, a save every second step; target: below 5%"]
    show([Table("Pause of training for a checkpoint in the background", columns, rows, notes)], given.json)


if __name__ == "__main__":
    main()
