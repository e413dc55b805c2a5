"""Training speed beside a peer: the same model, conversations, effective batch and precision, in turns, in one run.

    python -m benchmarks.peers install
    python -m benchmarks.throughput --peer trl [--model smollm2-135m] [--data FILE ...] [--conversations 16] [--json]

Ours is ``sengi train``; the peer's settings are in benchmarks/peer_worker.py: its defaults, and its documented ways to
be fast, of which the fastest counts as its best. Each runs in a process of its own; all of them take one step in turn,
the order reversed each round, so that a busy moment of the machine hits all. Every step is over the same conversations,
so that all losses can be compared, not only the first. Both sides get the same token ids and the same supervised
tokens, and the same AdamW, rate and clipping. How MFU is counted is in benchmarks/throughput_result.py.

Without --data a world is generated. With --json the last line is one JSON object.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.peer_worker import SETTINGS
from benchmarks.table import parser
from benchmarks.throughput_result import Side, Step, Work, summary, table
from sengi.data.formats import read_conversations
from sengi.data.packing import pack_step
from sengi.data.packs import computed_work
from sengi.data.store import StoreOptions, TokenStore
from sengi.data.store_build import open_store
from sengi.model.cost import best_dtype, model_cost, peak_flops
from sengi.model.lora import skeleton
from sengi.model.resolve import resolve_model
from sengi.recipe import DataEntry

LEARNING_RATE = 2e-5
PEAKS = 10  # measurements of the peak before a step and after it, of which the highest counts
# HF's AdamW, so that the losses of later steps agree, too
OPTIMIZER = {"learning_rate": LEARNING_RATE, "adam_beta2": 0.999, "weight_decay": 0.0, "max_grad_norm": 1.0}


class Worker:
    """A trainer in a process of its own that takes a step when it is asked to."""

    def __init__(
        self, name: str, command: Sequence[str], request: dict[str, Any], folder: Path, threads: int, flops: float
    ) -> None:
        self.name = name
        path = folder / f"{name}.json"
        path.write_text(json.dumps(request), encoding="utf-8")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "SENGI_CACHE": str(folder / "cache")}
        environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self._errors = folder / f"{name}.txt"
        self._process = subprocess.Popen(
            [*command, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors.open("w"),
            text=True,
            env=environment,
            cwd=peers.ROOT,
        )
        self.facts = self._answer()
        self._flops = flops
        self._steps: list[Step] = []

    def step(self, peak: Callable[[], float | None]) -> Step:
        """Take one optimizer step; ``peak`` tells before and after it what the machine can do."""
        before = peak()
        answer = self._ask("step")
        after = peak()
        around = (before + after) / 2 if before and after else None
        step = Step(answer["seconds"], answer["cpu_seconds"], answer["loss"], answer["grad_norm"], around)
        self._steps.append(step)
        return step

    def end(self, warm_up: int) -> Side:
        """End the process; what it measured after ``warm_up`` steps."""
        peak = self._ask("end")["peak_bytes"]
        self._process.wait()
        return Side(self.name, self._steps, peak, self._flops, warm_up)

    def _ask(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early:\n{self._errors.read_text()[-3000:]}")
        return dict(json.loads(line))


def choose(files: Sequence[str], model: Path, count: int, max_length: int, out: Path, seed: int) -> TokenStore:
    """Write ``count`` conversations drawn from ``files``, of at most ``max_length`` tokens, and open their store."""
    from sengi.model.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    found = itertools.chain.from_iterable(read_conversations(file) for file in files)
    rows = [list(row.messages) for row in found if not isinstance(row, Exception)]
    random.Random(seed).shuffle(rows)

    def fitting() -> Iterator[list[Any]]:
        for row in rows:
            if len(tokenizer.encode(tokenizer.apply_chat_template(row, tokenize=False))) <= max_length:
                yield row

    chosen = list(itertools.islice(fitting(), count))
    if len(chosen) < count:
        raise SystemExit(f"{len(chosen)} conversations of at most {max_length} tokens; lower --conversations")
    out.write_text("".join(json.dumps({"messages": row}) + "\n" for row in chosen), encoding="utf-8")
    options = StoreOptions(max_length=max_length, overlong="error")
    return open_store([DataEntry(path=str(out))], tokenizer, options)


def write_rows(store: TokenStore, out: Path) -> None:
    """The same token ids and supervised tokens for the peer: labels are ids, or -100 where nothing is learned."""
    with out.open("w", encoding="utf-8") as file:
        for sample in store.samples(np.arange(len(store))):
            labels = np.where(sample.loss_mask.astype(bool), sample.input_ids, -100)
            labels[0] = -100  # nothing before it could predict it
            file.write(json.dumps({"input_ids": sample.input_ids.tolist(), "labels": labels.tolist()}) + "\n")


def computed_in_a_step(store: TokenStore, budget: int, attention_cost: float) -> tuple[int, int]:
    """Tokens and squared lengths that our layers compute in a step over the whole store; lean packs leave some out."""
    packs = pack_step(store.lengths, budget, attention_cost=attention_cost, halves=True)
    tokens, squares = zip(*(computed_work(store.samples(pack)) for pack in packs.ranks[0]), strict=True)
    return sum(tokens), sum(squares)


def measure(given: Any, folder: Path) -> tuple[Work, list[Worker]]:
    """Run all sides in turns."""
    import torch

    model = resolve_model(given.model)
    os.environ["SENGI_CACHE"] = str(folder / "cache")
    files = given.data or _world(folder)
    store = choose(files, model, given.conversations, given.max_length, folder / "data.jsonl", given.seed)
    write_rows(store, folder / "rows.jsonl")
    dtype, device = given.dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto":
        dtype = str(best_dtype(device)[0]).removeprefix("torch.")
    recipe = {
        "model_name_or_path": str(model),
        "data": [{"path": str(folder / "data.jsonl")}],
        "output_dir": str(folder / "run"),
        "effective_batch_size": len(store),
        "num_train_epochs": 1000,
        "max_length": given.max_length,
        "max_tokens_per_device": given.max_tokens or given.max_length,
        "gradient_checkpointing": "none",
        "dtype": dtype,
        **OPTIMIZER,
    }
    common = {"peer": given.peer, "model": str(model), "data": str(folder / "rows.jsonl"), "rows": len(store)}
    common |= {"max_length": given.max_length, "max_tokens": recipe["max_tokens_per_device"]}
    common |= {"dtype": dtype, "learning_rate": LEARNING_RATE}
    ours = [sys.executable, "-m", "benchmarks.throughput_worker"]
    theirs = [peers.python(), str(Path(__file__).with_name("peer_worker.py"))]
    cost, tokens, targets = model_cost(skeleton(model)), int(store.lengths.sum()), int(store.supervised.sum())
    squares = float((store.lengths.astype(float) ** 2).sum())
    computed, computed_squares = computed_in_a_step(store, recipe["max_tokens_per_device"], cost.attention_cost)
    flops = cost.flops(computed, targets, computed_squares)
    workers = [Worker("sengi", ours, {"recipe": recipe}, folder, given.threads, flops)]
    workers[0].facts["computed_tokens"] = computed
    for setting in given.settings.split(",") if given.settings else SETTINGS[given.peer]:
        flops = cost.flops(tokens, targets, squares)
        workers.append(Worker(setting, theirs, {**common, "setting": setting}, folder, given.threads, flops))
    work = Work(len(store), tokens, targets)
    for worker in workers[1:]:  # the same work, as the peer itself counts it
        assert (worker.facts["tokens"], worker.facts["targets"]) == (work.tokens, work.targets), worker.facts
    torch.set_num_threads(workers[0].facts["threads"])

    def peak() -> float | None:
        return max(peak_flops(device, getattr(torch, dtype)) or 0.0 for _ in range(PEAKS)) or None

    for turn in range(given.warm_up + given.repeats):
        for worker in workers if turn % 2 == 0 else reversed(workers):
            print(f"# round {turn}: {worker.name} {worker.step(peak)}", file=sys.stderr, flush=True)
    return work, workers


def _world(folder: Path) -> list[str]:
    from sengi.world.write import write_world

    write_world(folder / "world", 1000, seed=0)
    return [str(path) for path in sorted((folder / "world" / "train").iterdir())]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__)
    options.set_defaults(repeats=3)
    options.add_argument("--peer", choices=sorted(SETTINGS), required=True)
    options.add_argument(
        "--settings", help="of the peer, with commas; all by default, 'default' must be one; each takes memory"
    )
    options.add_argument("--model", default="smollm2-135m", help="model folder or name")
    options.add_argument("--data", nargs="+", help="files of conversations")
    options.add_argument("--conversations", type=int, default=16, help="in a step: the effective batch")
    options.add_argument("--max-length", type=int, default=1024, help="tokens; longer conversations are not drawn")
    options.add_argument("--max-tokens", type=int, default=0, help="of our micro-batches; the peer's at 0")
    options.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    options.add_argument("--threads", type=int, default=0, help="of each trainer; its own choice at 0")
    options.add_argument("--warm-up", type=int, default=1, help="rounds before those that are timed")
    options.add_argument("--seed", type=int, default=0, help="which conversations are drawn")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sengi-throughput-") as name:
        work, workers = measure(given, Path(name))
        sides = [worker.end(given.warm_up) for worker in workers]
    facts = {worker.name: worker.facts for worker in workers}
    ours = facts["sengi"]
    versions = {name: v for side in facts.values() for name, v in side["versions"].items()}
    notes = [
        f"{work.conversations} conversations a step, {work.tokens:,} tokens, {work.targets:,} of them supervised, "
        f"counted alike on all sides; ours computes {ours['computed_tokens']:,} tokens of them (lean packs)",
        f"ours, before the first step: {ours['compiled']}",
        f"peak {min(peaks) / 1e9:,.0f} to {max(peaks) / 1e9:,.0f} GFLOP/s around our steps, {ours['threads']} threads"
        if (peaks := [step.peak for step in sides[0].timed if step.peak])
        else "peak not known",
        "; ".join(
            f"{name}: {side['micro_batches']} micro-batches, {side['places']:,} places for tokens, {side['attention']}"
            for name, side in facts.items()
            if name != "sengi"
        ),
        f"medians of {given.repeats} rounds after {given.warm_up} to warm up ('first s' is the first of all); "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
    ]
    result = summary(sides[0], sides[1:], work)
    print(table(f"{given.model} beside {given.peer}", sides, work, notes).text())
    print("\n".join(f"{name}: {value:.4g}" for name, value in result.items() if isinstance(value, float)))
    if given.json:
        print(json.dumps({**result, "versions": versions, "peer": given.peer, "model": given.model}))


if __name__ == "__main__":
    main()
