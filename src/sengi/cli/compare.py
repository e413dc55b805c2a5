"""``sengi compare``: saved answers of two or more evaluations in, paired differences out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sengi.cli.console import err, out
from sengi.cli.output_paths import check_output_file
from sengi.errors import InputError

if TYPE_CHECKING:
    from sengi.evaluate.compare import Comparison, Row

MOST_PARTS = 40  # rows of parts that are printed; all are in --output
CAPTION = """Other minus A over the same questions. p: McNemar's exact test (right or wrong) or sign flips (other
results); corrected by Holm for all rows of its table it decides the verdict. finds: the smallest true difference that
would be found 4 times in 5."""


def compare(baseline: Path, *others: Path, output: Path | None = None, figure: Path | None = None) -> int:
    """Compare evaluations of the same questions: difference with its 95% interval, p, and what could have been found.

    Args:
        baseline: Saved answers of the evaluation that the others are held against: a folder with lm-eval's
            samples_*.jsonl (sengi eval --output or lm_eval --log_samples), one such file, a run folder (its last
            evaluation) or one evaluations/step-*.items.jsonl.
        others: Saved answers of one or more evaluations of the same questions.
        output: Also write every number to this JSON file.
        figure: Also draw the differences into this PNG, SVG or PDF file.

    Returns:
        The exit status.
    """
    if not others:
        raise InputError("sengi compare needs two or more evaluations: the baseline, then those to hold against it")
    from sengi.disk import explained
    from sengi.evaluate.compare import compare as compare_samples
    from sengi.evaluate.saved_samples import load_samples
    from sengi.report.compare_figure import check_figure, draw_comparison

    if figure is not None:
        check_figure(figure)
    for option, file in (("--output", output), ("--figure", figure)):
        if file is not None:
            check_output_file(option, file)
    with err.status("reading saved answers"):
        comparison = compare_samples([load_samples(path.expanduser()) for path in (baseline, *others)])
    print_comparison(comparison)
    if output is not None:
        text = json.dumps(to_document(comparison), indent=1, ensure_ascii=False, allow_nan=False)
        with explained(output, "writing"):
            output.write_text(text + "\n", encoding="utf-8")
    if figure is not None:
        drawn = draw_comparison(comparison, figure.suffix)
        with explained(figure, "writing"):
            figure.write_bytes(drawn)
    for file in (output, figure):
        if file is not None:
            err.print("written:", str(file), markup=False, soft_wrap=True)
    return 0


def print_comparison(comparison: Comparison) -> None:
    """Print which evaluation has which letter, the table, its parts if they are few, and what was not compared."""
    for letter, name in zip(letters(comparison), comparison.names, strict=True):
        out.print(f"{letter}  {name}", markup=False, soft_wrap=True)
    _print_table(comparison, comparison.rows, "")
    if 0 < len(comparison.parts) <= MOST_PARTS:
        _print_table(comparison, comparison.parts, "parts")
    elif comparison.parts:
        err.print(f"{len(comparison.parts):,} parts of these rows are not printed; --output FILE.json has them")
    out.print(" ".join(CAPTION.split()), style="dim")
    left_out: dict[tuple[str, int], int] = {}
    for row in comparison.rows:  # metrics of one task leave the same questions out
        left_out[row.task, row.other] = max(row.left_out, left_out.get((row.task, row.other), 0))
    if count := sum(left_out.values()):
        err.print(f"{count:,} questions left out: one of the two could not be scored on them", style="yellow")
    for sentence in comparison.not_compared:
        err.print(f"not compared: {sentence}", markup=False, style="yellow", soft_wrap=True)


def letters(comparison: Comparison) -> list[str]:
    """A, B, C, ...; after Z numbers."""
    return [chr(ord("A") + k) if k < 26 else str(k + 1) for k in range(len(comparison.names))]


def _print_table(comparison: Comparison, rows: Sequence[Row], title: str) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("task\nmetric", overflow="fold", min_width=10)
    for column in ("n", "score", "difference\n95% interval", "p\nby Holm", "finds"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", min_width=13)
    for row in rows:
        task = f"{row.task}: {row.part}" if row.part else row.task
        style = {"better": "green", "worse": "red"}.get(row.verdict)
        cells = row_cells(comparison, row)
        table.add_row(escape(f"{task}\n{row.metric}"), *cells, verdict(comparison, row), style=style)
    out.print(table)


def row_cells(comparison: Comparison, row: Row) -> tuple[str, str, str, str, str]:
    """n, both scores, difference with interval, both p, and what could have been found; two lines each."""
    from sengi.report import formats

    d, names = row.paired.difference, letters(comparison)
    if row.is_share:
        scores = [formats.percent(value) for value in (row.before, row.after)]
        difference, interval = formats.points(d.value), formats.points_interval(d.low, d.high).removesuffix(" pp")
        finds = formats.points(row.detectable).removeprefix("+")
    else:
        scores = [formats.number(value) for value in (row.before, row.after)]
        difference, interval = _signed(d.value), f"{_signed(d.low)} to {_signed(d.high)}"
        finds = formats.number(row.detectable, 3)
    known = interval if not math.isnan(d.low) else formats.NOTHING
    both = f"{names[row.baseline]} {scores[0]}\n{names[row.other]} {scores[1]}"
    p_values = f"{formats.p_value(row.paired.p_value)}\n{formats.p_value(row.p_holm)}"
    return formats.count(d.n), both, f"{difference}\n{known}", p_values, finds


def verdict(comparison: Comparison, row: Row) -> str:
    """Which of the two is better, by letter, or that no difference was shown."""
    names = letters(comparison)
    winner = {"better": names[row.other], "worse": names[row.baseline]}.get(row.verdict)
    return f"{winner} better" if winner else row.verdict


def to_document(comparison: Comparison) -> dict[str, Any]:
    """Every number of a comparison as JSON holds it; what is not known is null."""
    from sengi.evaluate.compare import LEVEL, POWER

    return {
        "evaluations": dict(zip(letters(comparison), comparison.names, strict=True)),
        "level": LEVEL,
        "power": POWER,
        "rows": [_record(comparison, row) for row in comparison.rows],
        "parts": [_record(comparison, row) for row in comparison.parts],
        "not_compared": comparison.not_compared,
    }


def _record(comparison: Comparison, row: Row) -> dict[str, Any]:
    d, names = row.paired.difference, letters(comparison)
    numbers = {
        "baseline_score": row.before,
        "other_score": row.after,
        "difference": d.value,
        "low": d.low,
        "high": d.high,
        "bootstrap_low": row.bootstrap.low if row.bootstrap else None,
        "bootstrap_high": row.bootstrap.high if row.bootstrap else None,
        "p": row.paired.p_value,
        "p_holm": row.p_holm,
        "spread": row.spread,
        "detectable": row.detectable,
    }
    return {
        "task": row.task,
        "part": row.part or None,
        "metric": row.metric,
        "higher_is_better": row.higher_is_better,
        "baseline": names[row.baseline],
        "other": names[row.other],
        "n": d.n,
        "left_out": row.left_out,
        "interval": row.paired.method,
        "test": "mcnemar" if row.paired.method == "score" else "sign flip",
        "gained": row.paired.gained,
        "lost": row.paired.lost,
        **{key: None if value is None or math.isnan(value) else value for key, value in numbers.items()},
        "verdict": verdict(comparison, row),
    }


def _signed(value: float) -> str:
    from sengi.report import formats

    text = formats.number(value, 3)
    return f"+{text}" if value > 0 else text
