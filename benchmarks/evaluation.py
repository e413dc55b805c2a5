"""Sengi's scorer against lm-eval's own ``hf`` backend: the same answers, in less time.

    python -m benchmarks.evaluation --data-root DIR [--model smollm2-135m] [--blocks mmlu-5,gsm8k] [--limit 50] [--json]

Both run in one go on one machine, block by block in turns, each in a process of its own, in float32, on the same
questions of the same task objects of lm-eval. ``hf`` runs at its default batch size of 1, and once more on a fifth of
the questions at ``--peer-batch``; the ratio is to the faster of the two. DIR holds benchmark files as
docs/benchmarks.md describes. The model's folder is converted and cached before anything is timed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.table import Table, parser, show
from sengi.model.resolve import resolve_model

SUBJECTS = (
    "abstract_algebra",
    "anatomy",
    "business_ethics",
    "college_biology",
    "econometrics",
    "global_facts",
    "high_school_physics",
    "machine_learning",
    "moral_scenarios",
    "world_religions",
)


@dataclass(frozen=True)
class Block:
    """Tasks that are asked together, and their number of examples.

    Attributes:
        share: of --limit questions a task.
        batch_tokens: ours runs once with each of these; None is its own choice.
    """

    tasks: tuple[str, ...]
    num_fewshot: int | None
    share: float = 1.0
    batch_tokens: tuple[int | None, ...] = (None,)


BLOCKS = {
    "mmlu-0": Block(tuple(f"mmlu_{subject}" for subject in SUBJECTS), 0),
    "mmlu-5": Block(tuple(f"mmlu_{subject}" for subject in SUBJECTS), 5),
    "arc": Block(("arc_easy", "arc_challenge"), 0, 2.0),
    "winogrande": Block(("winogrande",), 0, 4.0),
    "truthfulqa": Block(("truthfulqa_mc2",), 0, 1.0),
    "gsm8k": Block(("gsm8k_cot",), None, 1.0, (None, 4096)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--data-root", type=Path, required=True, help="folder of benchmark files")
    options.add_argument("--model", default="smollm2-135m", help="model folder or name")
    options.add_argument("--blocks", default=",".join(BLOCKS), help=f"of {', '.join(BLOCKS)}")
    options.add_argument("--limit", type=int, default=50, help="questions a task")
    options.add_argument("--peer-batch", type=int, default=8, help="second batch size of hf")
    options.add_argument("--threads", type=int, default=0, help="threads of torch; its own choice at 0")
    given = options.parse_args(arguments)
    compared = [comparison for name in given.blocks.split(",") for comparison in _compare(name, given)]
    show([_answers_table(compared), _speed_table(compared)], given.json)


@dataclass(frozen=True)
class Comparison:
    """What both sides gave on one block."""

    name: str
    sengi: dict[str, Any]
    hf: dict[str, Any]
    hf_batched: dict[str, Any]
    peer_batch: int

    def pairs(self) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        """(task, our answer, the peer's) of every question; both were asked the same."""
        found = []
        for task, rows in self.hf["answers"].items():
            for theirs, ours in zip(rows, self.sengi["answers"][task], strict=True):
                assert (theirs["id"], theirs["prompt"]) == (ours["id"], ours["prompt"])
                found.append((task, ours, theirs))
        return found


def _compare(name: str, given: Any) -> list[Comparison]:
    """Run both sides on a block, ours between the two runs of the peer; an entry for each of our budgets."""
    block = BLOCKS[name]
    limit = max(1, int(given.limit * block.share))
    request = {
        "model": str(resolve_model(given.model)),
        "tasks": block.tasks,
        "num_fewshot": block.num_fewshot,
        "data_root": str(given.data_root),
        "threads": given.threads,
    }
    batched = {"backend": "hf", "batch_size": given.peer_batch, "limit": max(1, limit // 5)}
    hf_batched = _worker({**request, **batched})
    ours = [
        _worker({**request, "backend": "sengi", "limit": limit, "batch_tokens": tokens})
        for tokens in block.batch_tokens
    ]
    hf = _worker({**request, "backend": "hf", "batch_size": 1, "limit": limit})
    names = [name, *(f"{name}, {tokens} tokens" for tokens in block.batch_tokens[1:])]
    return [Comparison(label, run, hf, hf_batched, given.peer_batch) for label, run in zip(names, ours, strict=True)]


def _worker(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "benchmarks.evaluation_worker", json.dumps(request), str(out)]
        print(f"# {request['backend']} {request['tasks'][0]} ... limit {request['limit']}", file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return dict(json.loads(out.read_text()))


def _answers_table(compared: Sequence[Comparison]) -> Table:
    rows, notes = [], []
    for comparison in compared:
        pairs = comparison.pairs()
        same = [_same(ours, theirs) for _, ours, theirs in pairs]
        gaps = [abs(a - b) for _, o, t in pairs if "sums" in o for a, b in zip(o["sums"], t["sums"], strict=True)]
        rows.append(
            (comparison.name, len(pairs), 100.0 * sum(same) / len(same), max(gaps) if gaps else "-", len(gaps) or "-")
        )
        for (task, ours, theirs), equal in zip(pairs, same, strict=True):
            if not equal:
                notes.append(f"{task} question {ours['id']}: {_difference(ours, theirs)}")
    columns = ("block", "questions", "same answer %", "largest difference", "log-likelihoods")
    return Table(
        "The same answers as lm-eval's hf backend, float32",
        columns,
        rows,
        [*notes, "same answer: the likeliest choice, or the generated string; differences in nats"],
    )


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    if "text" in theirs:
        return bool(ours["text"] == theirs["text"])
    return _best(ours["sums"]) == _best(theirs["sums"])


def _best(sums: list[float]) -> int:
    return max(range(len(sums)), key=sums.__getitem__)


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    if "text" in theirs:
        at = next((i for i, (a, b) in enumerate(zip(ours["text"], theirs["text"], strict=False)) if a != b), 0)
        return f"texts part at character {at}: {ours['text'][at : at + 40]!r} for {theirs['text'][at : at + 40]!r}"
    two = sorted(theirs["sums"], reverse=True)[:2]
    return f"its two best choices lie {two[0] - two[1]:.2g} nats apart; ours {ours['sums']}, hf {theirs['sums']}"


def _speed_table(compared: Sequence[Comparison]) -> Table:
    rows = []
    for c in compared:
        questions = sum(map(len, c.sengi["answers"].values()))
        fewer = sum(map(len, c.hf_batched["answers"].values()))
        ours, hf, batched = c.sengi["seconds"] / questions, c.hf["seconds"] / questions, c.hf_batched["seconds"] / fewer
        best, name = min((hf, "1"), (batched, str(c.peer_batch)))
        cpu = min(c.hf["cpu_seconds"] / questions, c.hf_batched["cpu_seconds"] / fewer)
        rows.append(
            (
                c.name,
                1 / ours,
                1 / hf,
                1 / batched,
                best / ours,
                name,
                cpu / (c.sengi["cpu_seconds"] / questions),
                c.sengi["peak_bytes"] / 2**30,
                c.hf["peak_bytes"] / 2**30,
                c.hf_batched["peak_bytes"] / 2**30,
            )
        )
    columns = (
        "block",
        "sengi q/s",
        "hf q/s",
        "hf batched q/s",
        "times faster",
        "than hf batch",
        "times less CPU",
        "sengi GiB",
        "hf GiB",
        "hf batched GiB",
    )
    note = "times faster: wall time against the faster hf; GiB: peak of the process"
    threads = f"{compared[0].sengi['threads']} threads; lm-eval and transformers as installed"
    return Table("Speed and memory", columns, rows, [note, threads])


if __name__ == "__main__":
    main()
