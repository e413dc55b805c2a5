"""One of several processes that evaluate together; started with torchrun's variables. Prints what it got as JSON.

At the end the model of rank 1 breaks. Arguments: model folder, cache folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.harness.requests import request, scored, written
from tests.harness.resumed_program import PAIRS, PROMPTS

from sengi.errors import SengiError
from sengi.harness.lm import SengiLM


def main() -> None:
    lm = SengiLM(sys.argv[1], device="cpu", cache=Path(sys.argv[2]), progress=lambda *now: None)
    answers = [
        lm.loglikelihood(scored(*PAIRS, ("a dog" * 300, " barks"))),
        lm.generate_until(written(*PROMPTS, max_gen_toks=8)),
        lm.loglikelihood_rolling([request("loglikelihood_rolling", prompt) for prompt in PROMPTS]),
    ]
    result = {
        "rank": int(os.environ["RANK"]),
        "answers": answers,
        "tokens": lm._scorer.tokens_computed,
        "truncated": lm.truncated,
    }
    if os.environ["RANK"] == "1":
        lm.model.get_parameter("model.norm.weight").data[:] = float("nan")
    try:
        lm.loglikelihood(scored(("one dog", " barks"), ("two dogs", " bark")))
    except SengiError as error:
        result["failed"] = {"kind": type(error).__name__, "message": str(error), "elsewhere": error.elsewhere}
    print(json.dumps(result) + "\n", end="", flush=True)  # in one piece: another process writes to the same file


if __name__ == "__main__":
    main()
