"""Judge the small bench in a process of its own, to be killed: FOLDER URL."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.mt_bench.bench_folder import ANSWERS, make_options

from sengi.mt_bench.files import load_bench
from sengi.mt_bench.judge import judge_answers

if __name__ == "__main__":
    options = make_options(Path(sys.argv[1]), sys.argv[2], repeat_share=1.0)
    judge_answers(load_bench(options.data, "judge"), ANSWERS, "tiny", options)
