"""Write a generated world: training files a phase, evaluation files, and the facts behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sengi.errors import InputError, StorageError
from sengi.world.evaluation import answer_rows, choice_rows, heldout_rows
from sengi.world.facts import RELATIONS, World, build_world
from sengi.world.instruction import InstructionRows
from sengi.world.knowledge import KnowledgeRows, Row
from sengi.world.sizes import sizes_for
from sengi.world.skills import SkillRows
from sengi.world.stream import Stream

FORMAT_VERSION = 1
PROGRESS_EVERY = 1_000
PHASES = ("knowledge", "skills", "instruction")

_encode = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class WorldSummary:
    """What was written.

    Attributes:
        out: the folder.
        organisation: the name of the organisation.
        samples: training rows.
        seed: the seed.
        taught, control: numbers of facts.
        rows: rows by file, the file named relative to ``out``.
    """

    out: Path
    organisation: str
    samples: int
    seed: int
    taught: int
    control: int
    rows: dict[str, int]


def write_world(out: Path, samples: int, seed: int, *, progress: Callable[[int], None] | None = None) -> WorldSummary:
    """Generate a world and write it to a new or empty folder.

    The bytes depend on ``samples`` and ``seed`` only. Rows are written as they are made; memory grows with the
    number of facts. ``world.json`` comes last: a folder that has it is complete.

    Args:
        out: the folder.
        samples: training rows in all, 100 to 1,000,000.
        seed: the seed, not negative.
        progress: called with the number of training rows written so far, every 1,000 rows and at the end.

    Returns:
        The counts of what was written.

    Raises:
        InputError: ``samples`` or ``seed`` is out of range, or the folder cannot take a new world.
        StorageError: a file could not be written.
    """
    sizes = sizes_for(samples)
    if seed < 0:
        raise InputError(f"--seed {seed}: a seed is 0 or more; set --seed to such a number")
    _prepare(out)
    world = build_world(sizes, seed)
    train: dict[str, Iterator[Row]] = {
        "knowledge": KnowledgeRows(world, Stream(seed, "knowledge")).rows(),
        "skills": SkillRows(world, Stream(seed, "skills")).rows(sizes.skills),
        "instruction": InstructionRows(world, Stream(seed, "instruction")).rows(sizes.instruction),
    }
    rows: dict[str, int] = {}
    done = 0
    for phase in PHASES:
        count = _write_train(out / "train" / f"{phase}.jsonl", phase, train[phase], done, progress)
        rows[f"train/{phase}.jsonl"] = count
        done += count
    if progress is not None and done % PROGRESS_EVERY:
        progress(done)
    heldout = (_row(phase, f"heldout-{n:04d}", row) for n, (phase, row) in enumerate(heldout_rows(world, seed), 1))
    evaluation = {"choice": choice_rows(world, seed), "answer": answer_rows(world, seed), "heldout": heldout}
    for name, items in evaluation.items():
        rows[f"eval/{name}.jsonl"] = _write_lines(out / "eval" / f"{name}.jsonl", map(_encode, items))
    _write_lines(out / "world.json", [json.dumps(_description(world, seed, rows), indent=1)])
    return WorldSummary(
        out=out,
        organisation=world.organisation,
        samples=samples,
        seed=seed,
        taught=len(world.taught),
        control=len(world.control),
        rows=rows,
    )


def _prepare(out: Path) -> None:
    """Make the folders; refuse what is not a new or empty folder."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: exists and is not an empty folder; choose another folder or empty it first")
        for name in ("train", "eval"):
            (out / name).mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made a folder ({error.strerror}); choose another folder") from error


def _row(phase: str, name: str, row: Row) -> dict[str, Any]:
    messages, topic = row
    return {"messages": messages, "id": name, "source": f"world_{phase}", "phase": phase, "topic": topic}


def _write_train(path: Path, phase: str, rows: Iterable[Row], done: int, progress: Callable[[int], None] | None) -> int:
    """Write one training file, telling ``progress`` on top of ``done`` rows of earlier files."""

    def lines() -> Iterator[str]:
        for number, row in enumerate(rows, 1):
            yield _encode(_row(phase, f"{phase}-{number:06d}", row))
            if progress is not None and (done + number) % PROGRESS_EVERY == 0:
                progress(done + number)

    return _write_lines(path, lines())


def _write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines to a file.

    Returns:
        The number of lines.
    """
    count = 0
    try:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(line + "\n")
                count += 1
    except OSError as error:
        raise StorageError(
            f"{path}: could not be written ({error.strerror}); mend that, empty the folder and run again"
        ) from error
    return count


def _description(world: World, seed: int, rows: dict[str, int]) -> dict[str, Any]:
    """The content of ``world.json``."""
    return {
        "format": "sengi-world",
        "format_version": FORMAT_VERSION,
        "organisation": world.organisation,
        "samples": world.sizes.samples,
        "seed": seed,
        "rows": rows,
        "counts": {
            "taught": len(world.taught),
            "control": len(world.control),
            "evaluated_taught": world.sizes.eval_taught,
            "evaluated_control": world.sizes.eval_control,
        },
        "relations": {
            relation.name: {
                "subject": relation.subject,
                "train_phrasings": len(relation.train),
                "heldout_phrasings": len(relation.heldout),
            }
            for relation in RELATIONS
        },
        "facts": [
            {
                "id": fact.id,
                "relation": fact.relation.name,
                "subject": fact.subject,
                "answer": fact.answer,
                "group": fact.group,
            }
            for fact in (*world.taught, *world.control)
        ],
    }
