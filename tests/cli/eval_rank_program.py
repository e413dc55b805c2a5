"""``sengi eval`` as one of several processes; started with torchrun's variables. Writes what it did to a file.

Arguments: folder for ``rank-N.json`` (model folder -> tokens that this process computed for its benchmarks; who asked
the rest), then those of ``sengi``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from sengi.cli.app import run
from sengi.evaluate import heldout_files, tasks
from sengi.evaluation import Evaluation
from sengi.harness import run as harness
from sengi.mt_bench import run as mt_bench

tokens: dict[str, int] = {}
alone: list[str] = []
run_tasks = harness.run_tasks


def counted(lm: Any, *arguments: Any, **options: Any) -> Evaluation:
    found = run_tasks(lm, *arguments, **options)
    tokens[Path(lm.model.config._name_or_path).name] = lm._scorer.tokens_computed
    return found


def noted(module: Any, name: str) -> None:
    work = getattr(module, name)

    def note(model: Path, *arguments: Any, **options: Any) -> Evaluation:
        alone.append(f"{name} {model.name}")
        return work(model, *arguments, **options)

    setattr(module, name, note)


if __name__ == "__main__":
    harness.run_tasks = counted
    noted(heldout_files, "evaluate_heldout")
    noted(tasks, "evaluate_questions")
    noted(mt_bench, "evaluate_mt_bench")
    code = run(sys.argv[2:])
    report = Path(sys.argv[1]) / f"rank-{os.environ['RANK']}.json"
    report.write_text(json.dumps({"tokens": tokens, "alone": alone}))
    sys.exit(code)
