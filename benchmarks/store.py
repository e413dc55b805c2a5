"""Speed of building a token store, against the bare tokenizer.

    python -m benchmarks.store [--json] [--samples 40000] [--cores N] [--data FILE ...] [--model FOLDER]

Bare: one call of the tokenizer's own ``encode_batch`` (what ``tokenizer(texts)`` calls, without the copies into lists
that it makes) on the same conversations, already read, checked and rendered to text, in memory, on the same cores, its
word cache warm. It gives encodings in Rust's memory; nothing is masked or written.
Store: a cold build from JSON on disk to a store on disk: loading the tokenizer, hashing and reading files, checking
rows, rendering, tokenizing, masking, writing.

Both sides run in turn, so that a busy moment hits both, and the order changes with each repeat; ratios are taken
inside a repeat and their median is told. Wall time suffers most from other work on the machine. CPU seconds, those of
all threads and processes together, are what one core would need. Least: the best of all repeats on both sides.

Without --data a world is generated and measured twice: its one-question rows as they are, and eight of them to a
chat, which is about the length of instruction data. Without --model a byte-level BPE of 4,096 tokens is trained on
the data.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import Table, parser, show
from sengi.data.formats import read_conversations
from sengi.data.store import StoreOptions
from sengi.data.store_build import open_store
from sengi.recipe import DataEntry

OPTIONS = StoreOptions(max_length=1_000_000, overlong="drop")
TURNS = 8
BARE = "bare encode_batch"


def compare(name: str, files: Sequence[Path], model: Path, cores: int, repeats: int) -> Table:
    """Conversations a second on both sides, measured in turns so that a busy moment hits both."""
    from sengi.model.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    texts = list(_rendered(tokenizer, files))
    core = tokenizer.backend_tokenizer
    tokens = sum(len(encoding.ids) for encoding in core.encode_batch(texts, add_special_tokens=False))  # warms up, too
    entries = [DataEntry(path=str(file)) for file in files]

    def build() -> None:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["SENGI_CACHE"] = cache
            store = open_store(entries, tokenizer, OPTIONS, workers=cores)
            assert len(store) == len(texts)  # the same work on both sides

    sides: dict[str, Callable[[], Any]] = {
        BARE: lambda: core.encode_batch(texts, add_special_tokens=False),
        "token store, cold build": build,
    }
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sorted(sides, reverse=repeat % 2 == 1):
            times[side].append(_measured(sides[side]))
    rows = [_row(side, measured, times[BARE], len(texts)) for side, measured in times.items()]
    return Table(
        f"{name}: {len(texts):,} conversations of {tokens / len(texts):.0f} tokens, {cores} cores",
        ("what", "seconds", "conversations/s", "ratio", "CPU seconds", "CPU ratio", "least CPU", "ratio of least"),
        rows,
        [f"medians of {repeats}; target: a ratio of at least 0.8; CPU seconds are those of all threads and processes"],
    )


def _row(
    side: str, measured: Sequence[tuple[float, float]], bare: Sequence[tuple[float, float]], count: int
) -> Sequence[Any]:
    """One line of the table, from (wall, CPU) seconds of each repeat."""
    wall, cpu = (statistics.median(column) for column in zip(*measured, strict=True))
    ratios = [statistics.median(b[k] / own[k] for b, own in zip(bare, measured, strict=True)) for k in (0, 1)]
    least = min(seconds for _, seconds in measured)
    best = min(seconds for _, seconds in bare)
    return (side, wall, count / wall, ratios[0], cpu, ratios[1], least, best / least)


def _measured(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds, those of ended child processes included."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def _rendered(tokenizer: Any, files: Sequence[Path]) -> Iterator[str]:
    """Every conversation as the text that the tokenizer gets."""
    for file in files:
        for row in read_conversations(file):
            if not isinstance(row, Exception):
                yield tokenizer.apply_chat_template(list(row.messages), tokenize=False)


def _write_chats(files: Sequence[Path], out: Path) -> Path:
    """TURNS rows after one another as one conversation, without their system messages."""
    with out.open("w", encoding="utf-8") as file:
        lines = itertools.chain.from_iterable(path.open(encoding="utf-8") for path in files)
        for rows in iter(lambda: list(itertools.islice(lines, TURNS)), []):
            turns = itertools.chain.from_iterable(json.loads(row)["messages"] for row in rows)
            messages = [message for message in turns if message["role"] != "system"]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    # not at the top of the file: worker processes import it as their main module, as they do not for `sengi train`
    from benchmarks.small_model import make_small_model
    from sengi.world.write import write_world

    options = parser(__doc__)
    options.set_defaults(repeats=3)
    options.add_argument("--samples", type=int, default=40_000, help="rows of the generated world")
    options.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--data", type=Path, nargs="+", default=[])
    options.add_argument("--model", type=Path)
    given = options.parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])  # both sides, threads and processes
    with tempfile.TemporaryDirectory() as folder:
        sets: dict[str, list[Path]] = {"Token store, given data": list(given.data)}
        if not given.data:
            write_world(Path(folder, "world"), given.samples, seed=0)
            rows = sorted(Path(folder, "world", "train").iterdir())
            sets = {
                "Token store, single questions": rows,
                "Token store, chats": [_write_chats(rows, Path(folder, "chats.jsonl"))],
            }
        model = given.model or Path(folder, "model")
        if given.model is None:
            make_small_model(model, [str(file) for file in next(iter(sets.values()))], vocab=4096, hidden=64, layers=1)
        show([compare(name, files, model, given.cores, given.repeats) for name, files in sets.items()], given.json)


if __name__ == "__main__":
    main()
