"""Memory and time at scale: building a token store, starting a run on it, planning an epoch.

    python -m benchmarks.store_scale [--json] [--rows 100000 1000000] [--plan 1000000 10000000] [--cores N]

Rows are those of the generated world, over and over, each question with a number of its own; they lie in Parquet
shards of 100,000. Every line is a process of its own, and peak memory is the most that was resident at a time. Bare:
the tokenizer's own ``encode_batch`` on the same rows rendered to text, 20,000 of them, told for all. CPU seconds are
those of all threads and processes of a side, without imports. Start: ``open_store`` on the ready store and the counts
that a plan prints, in a new process, without imports.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import Table, parser, show

SHARD = 100_000
GROUP = 10_000  # rows of a row group
BARE = 20_000


def _rows(world: Path) -> Iterator[list[dict[str, str]]]:
    """Messages without end."""
    found = [json.loads(line)["messages"] for path in sorted(world.iterdir()) for line in path.open(encoding="utf-8")]
    for number, messages in enumerate(itertools.cycle(found)):
        first, *rest = [message for message in messages if message["role"] != "system"]
        yield [first | {"content": f"{first['content']} (Case {number})"}, *rest]


def write_shards(folder: Path, rows: int) -> None:
    """Rows as Parquet, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sengi.world.write import write_world

    write_world(folder / "world", 20_000, seed=0)
    source = _rows(folder / "world" / "train")
    (folder / "data").mkdir()
    for start in range(0, rows, SHARD):
        left = min(SHARD, rows - start)
        writer = None
        for first in range(0, left, GROUP):
            group = [{"messages": next(source)} for _ in range(min(GROUP, left - first))]
            table = pa.Table.from_pylist(group)
            writer = writer or pq.ParquetWriter(folder / "data" / f"part-{start // SHARD:04}.parquet", table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _build(data: Path, model: Path, cores: int) -> dict[str, Any]:
    """Open the store of these rows, a new one or that of an earlier call."""
    from sengi.data.store import StoreOptions
    from sengi.data.store_build import open_store
    from sengi.model.load import load_tokenizer
    from sengi.recipe import DataEntry

    tokenizer = load_tokenizer(model)  # it and its imports are not counted
    imported = _peak()
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    store = open_store([DataEntry(path=str(data))], tokenizer, StoreOptions(4096, "drop"), workers=cores)
    tokens = store.summary()["tokens"]
    cpu = sum(os.times()[:4]) - cpu
    return {"seconds": time.perf_counter() - wall, "cpu": cpu, "tokens": tokens, "before": imported, "peak": _peak()}


def _bare(data: Path, model: Path, cores: int) -> dict[str, Any]:
    """CPU seconds of the bare tokenizer for the first rows, its word cache warm."""
    from sengi.data.formats import read_conversations
    from sengi.model.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    rows = itertools.islice(read_conversations(sorted(data.iterdir())[0]), BARE)
    texts = [
        tokenizer.apply_chat_template(list(row.messages), tokenize=False)
        for row in rows
        if not isinstance(row, Exception)
    ]
    core = tokenizer.backend_tokenizer
    core.encode_batch(texts[:5000], add_special_tokens=False)
    cpu = sum(os.times()[:4])
    core.encode_batch(texts, add_special_tokens=False)
    return {"cpu": (sum(os.times()[:4]) - cpu) / len(texts)}


def _plan(samples: int) -> dict[str, Any]:
    """Walk one epoch."""
    from sengi.data.plan import StepPlan

    before, wall = _peak(), time.perf_counter()
    plan = StepPlan(samples, 3840, num_epochs=1, seed=42)
    for step in range(1, plan.num_steps + 1):
        plan.step_samples(step)
    return {"seconds": time.perf_counter() - wall, "before": before, "peak": _peak()}


def _peak() -> float:
    """Largest resident memory of this process so far, MB (getrusage would count the parent's, too)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def _alone(what: str, *arguments: object) -> dict[str, Any]:
    """The result of one of the functions above in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.store_scale", "--alone", what, *map(str, arguments)]
    answer: dict[str, Any] = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return answer


def _stores(counts: Sequence[int], cores: int, given: Path | None) -> Table:
    from benchmarks.small_model import make_small_model

    lines = []
    for rows in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.environ["SENGI_CACHE"] = str(folder / "cache")
            write_shards(folder, rows)
            model = given or folder / "model"
            if given is None:
                files = [str(path) for path in sorted((folder / "world" / "train").iterdir())]
                make_small_model(model, files, vocab=4096, hidden=64, layers=1)
            bare = _alone("bare", folder / "data", model, cores)["cpu"] * rows
            built, start = (_alone("build", folder / "data", model, cores) for _ in range(2))
            ratio = bare / built["cpu"]
            peaks = (built["before"], built["peak"])
            starts = (start["seconds"], start["cpu"])
            lines.append((rows, built["tokens"] / rows, built["seconds"], built["cpu"], bare, ratio, *peaks, *starts))
    first = ("rows", "tokens a row", "seconds", "CPU seconds", "bare CPU s", "ratio")
    columns = (*first, "MB before", "peak MB", "start s", "start CPU s")
    return Table(
        f"Token store from Parquet shards, {cores} cores", columns, lines, ["target: ratio 0.9, start under 1 s"]
    )


def _plans(counts: Sequence[int]) -> Table:
    answers = [(samples, _alone("plan", samples)) for samples in counts]
    lines = [(samples, answer["seconds"], answer["before"], answer["peak"]) for samples, answer in answers]
    return Table(
        "Samples of all steps of one epoch, 3,840 a step", ("samples", "seconds", "MB before", "peak MB"), lines
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, nargs="*", default=[100_000, 1_000_000])
    options.add_argument("--plan", type=int, nargs="*", default=[1_000_000, 10_000_000])
    options.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--model", type=Path)
    options.add_argument("--alone", nargs="+", help="for processes that this one starts")
    given = options.parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.cores :])
    if given.alone:
        what, *words = given.alone
        if what == "plan":
            print(json.dumps(_plan(int(words[0]))))
        else:
            work = {"build": _build, "bare": _bare}[what]
            print(json.dumps(work(Path(words[0]), Path(words[1]), int(words[2]))))
        return
    tables = [_stores(given.rows, given.cores, given.model)] if given.rows else []
    show([*tables, *([_plans(given.plan)] if given.plan else [])], given.json)


if __name__ == "__main__":
    main()
