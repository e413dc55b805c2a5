"""A process that evaluates with a cache and kills itself hard in the middle, if told to.

Arguments: model folder, cache folder, number of answers after which to die (0: never).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.harness.requests import request, scored, written

from sengi.harness.lm import SengiLM

ENDINGS = ("two", "many")
PAIRS = [(f"{number} dogs and {number * 7} cats are", f" {ending}") for number in range(6) for ending in ENDINGS]
PROMPTS = [f"What is the capital of {name}?" for name in ("Spain", "Italy", "France", "Norway")]


def evaluate(model: Path, cache: Path, die_after: int) -> dict[str, Any]:
    """Answers of all kinds, and where they came from; dies once so many answers are there (0: never)."""
    before = 0

    def progress(done: int, total: int, kind: str) -> None:
        nonlocal before
        if die_after and before + done >= die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if done == total:
            before += total

    lm = SengiLM(model, device="cpu", batch_tokens=32, cache=cache, progress=progress)
    answers = [
        [list(pair) for pair in lm.loglikelihood(scored(*PAIRS))],
        lm.generate_until(written(*PROMPTS, max_gen_toks=8)),
        lm.loglikelihood_rolling([request("loglikelihood_rolling", prompt * 4) for prompt in PROMPTS]),
    ]
    return {"answers": answers, "computed": lm.answering.computed, "served": lm.answering.served}


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
