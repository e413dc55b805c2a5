"""The second process of ``eval_process: second``: scores one checkpoint and ends.

    python -m sengi.train.score_step        the job is one JSON object on standard input (background.py)

It lives as long as the run that started it, has the lowest claim on the processor, and leaves its result where
``sengi eval RUN`` would. On failure the last line on standard error is the cause.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from sengi.errors import SengiError
from sengi.evaluate.suite import Suite
from sengi.train.parent import die_with

NICE = 5  # training goes first where both want a core


def main() -> int:
    """Do the job; returns the exit status."""
    job: dict[str, Any] = json.load(sys.stdin)
    die_with(job["parent"])
    with contextlib.suppress(OSError):
        os.nice(NICE)
    from sengi.evaluate.checkpoints import score_step  # loads torch, which takes seconds
    from sengi.inference.vllm_engine import without_vllm

    root = job["suite"]["data_root"]
    suite = Suite(**{**job["suite"], "tasks": tuple(job["suite"]["tasks"]), "data_root": root and Path(root)})
    run, model = Path(job["run"]), Path(job["model"])
    try:
        with without_vllm():
            score_step(run, job["step"], model, suite, job["data"])
    except SengiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
