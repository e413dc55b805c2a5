"""``sengi eval``: a model and questions in, scores with intervals out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sengi.cli.console import err, out
from sengi.errors import InputError

if TYPE_CHECKING:
    from sengi.evaluation import Evaluation

KINDS = ("questions",)


def eval_(
    model: str,
    *,
    tasks: list[str],
    limit: int | None = None,
    output: Path | None = None,
    batch_tokens: int = 4096,
) -> int:
    """Score a model on questions and print the scores with their 95% intervals.

    Args:
        model: A model or checkpoint folder, a GGUF file, a hub id or smollm2-135m.
        tasks: What to ask, as kind:FILE, for example questions:eval.jsonl; repeatable, or separated by commas.
        limit: Only the first so many questions of each file.
        output: Also write scores and every answer to this JSON file.
        batch_tokens: Most tokens in one forward call; less needs less memory.

    Returns:
        The exit status.
    """
    files = parse_tasks(tasks)
    if output is not None and not output.parent.is_dir():
        raise InputError(f"--output {output}: the folder {output.parent} does not exist; create it first")
    if batch_tokens < 1:
        raise InputError(f"--batch-tokens {batch_tokens}: no token fits; give 1 or more")
    from rich.markup import escape

    from sengi.evaluate.tasks import evaluate_questions, load_tasks
    from sengi.model.resolve import resolve_model

    load_tasks(files, limit)
    folder = resolve_model(model)
    with err.status("loading the model") as status:

        def show(done: int, total: int, task: str) -> None:
            status.update(f"{escape(task)}: {done:,} of {total:,} questions")

        result = evaluate_questions(folder, files, batch_tokens=batch_tokens, limit=limit, progress=show)
    print_scores(result, title=str(model))
    if output is not None:
        document = {"model": model, "seconds": result.seconds, "scores": result.scores, "items": result.items}
        output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        err.print("written:", str(output), markup=False)
    return 0


def parse_tasks(tasks: Sequence[str]) -> list[Path]:
    """Files of the tasks ``questions:FILE``, also several in one word separated by commas.

    Raises:
        InputError: no task, an unknown kind, or a file that does not exist.
    """
    files = []
    for task in [part.strip() for word in tasks for part in word.split(",") if part.strip()]:
        kind, colon, name = task.partition(":")
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}:FILE?" if near else f"known: {', '.join(f'{k}:FILE' for k in KINDS)}"
            raise InputError(f"--tasks {task}: no task of this name; {hint}")
        if not colon or not name:
            raise InputError(f"--tasks {task}: the file is missing; write {kind}:FILE")
        files.append(Path(name).expanduser())
        if not files[-1].is_file():
            raise InputError(f"--tasks {task}: {name} does not exist; check the path")
    if not files:
        raise InputError(f"--tasks: nothing to ask; give {KINDS[0]}:FILE")
    return files


def print_scores(result: Evaluation, title: str) -> None:
    """Print one line a score: value and interval in percent."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=title, caption=f"{len(result.items):,} questions in {result.seconds:.1f} s; 95% Wilson intervals"
    )
    for column in ("task", "metric", "group"):
        table.add_column(column, overflow="fold")
    for column in ("score", "95% interval", "n"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.scores:
        table.add_row(*(escape(row[key]) for key in ("task", "metric", "group")), *_numbers(row))
    out.print(table)


def _numbers(row: dict[str, Any]) -> tuple[str, str, str]:
    return f"{row['value']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}", f"{row['n']:,}"
