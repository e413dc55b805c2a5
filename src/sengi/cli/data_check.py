"""``sengi data check``: the data doctor."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING, Literal

from sengi.errors import InputError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.progress import Progress
    from rich.table import Table

    from sengi.data.check_report import CheckReport
    from sengi.data.findings import Finding

BAR = 30  # characters of the longest bar in the histogram
SOURCES = 12  # sources listed; --json has all
COLOURS = {"errors": "bold red", "warnings": "bold yellow", "ok": "bold green"}


def check(
    files: list[str],
    /,
    *,
    model: str,
    max_length: int = 4096,
    max_tokens_per_device: int | None = None,
    effective_batch_size: int = 3840,
    overlong: Literal["drop", "truncate", "error"] = "drop",
    overlap: list[str] | None = None,
    json: bool = False,
) -> int:
    """Check data files before a run: every row is read, rendered, tokenized and masked as training would.

    Args:
        files: Data files, folders, or ids of hub datasets.
        model: Model whose tokenizer and chat template are used: a folder, hub id, GGUF file or smollm2-135m.
        max_length: Tokens a sample may have.
        max_tokens_per_device: Tokens a pack may hold; max_length if not given.
        effective_batch_size: Samples a step.
        overlong: What happens to samples above max_length.
        overlap: Evaluation file (or folder) that must not stand in the data; may be given several times.
        json: Print one JSON object instead of tables.

    Returns:
        The exit status: 2 when a run would refuse the data, else 0.
    """
    for name, value in (
        ("--max-length", max_length),
        ("--max-tokens-per-device", max_tokens_per_device),
        ("--effective-batch-size", effective_batch_size),
    ):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: nothing fits; give 1 or more")
    from sengi.cli.console import out
    from sengi.data.check import check_data
    from sengi.model.load import load_tokenizer
    from sengi.model.resolve import resolve_model

    tokenizer = load_tokenizer(resolve_model(model))
    with _progress() as progress:
        task = progress.add_task("checking", total=None)
        report = check_data(
            files,
            tokenizer,
            max_length=max_length,
            max_tokens_per_device=max_tokens_per_device or max_length,
            effective_batch_size=effective_batch_size,
            overlong=overlong,
            overlap_files=overlap or (),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if json:
        out.file.write(json_module.dumps(report.to_dict()) + "\n")
    else:
        out.print(_page(report))
    return 2 if report.verdict == "errors" else 0


def _progress() -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from sengi.cli.console import err

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True)


def _page(report: CheckReport) -> Group:
    from rich.console import Group
    from rich.text import Text

    parts: list[Table | Text] = [_summary(report), Text(), _counts(report)]
    if report.lengths:
        parts += [Text(), _histogram(report)]
    for finding in report.findings:
        parts += [Text(), _finding(finding, report.files)]
    verdict = {
        "errors": "errors: a run would refuse this data",
        "warnings": "usable, with warnings",
        "ok": "ok",
    }[report.verdict]
    parts += [Text(), Text(f"verdict: {verdict}", style=COLOURS[report.verdict])]
    return Group(*parts)


def _summary(report: CheckReport) -> Table:
    from rich.table import Table

    options, packing = report.options, report.packing
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")  # a path cut with dots names no file
    skipped = f" ({len(report.skipped)} of no known kind left out)" if report.skipped else ""
    table.add_row("files", f"{len(report.files):,}{skipped}")
    table.add_row("rows", f"{report.rows:,}, of which {report.usable:,} can be trained on")
    share = report.supervised_tokens / report.tokens if report.tokens else 0.0
    table.add_row("tokens", f"{report.tokens:,}, of which {report.supervised_tokens:,} supervised ({share:.1%})")
    if packing:
        table.add_row(
            "steps",
            f"{packing['steps_per_epoch']:,} an epoch at effective_batch_size {options.effective_batch_size:,}; "
            f"the last has {packing['last_step_samples']:,} samples",
        )
        table.add_row(
            "packing",
            f"{packing['packs_per_step']:,} packs a step of {packing['tokens_per_step']:,} tokens, "
            f"{packing['fill']:.1%} full at max_tokens_per_device {options.max_tokens_per_device:,}",
        )
    if tried := report.round_trip["tried"]:
        equal = report.round_trip["equal"]
        table.add_row("round trip", f"{equal:,} of the first {tried:,} chats have the ids of the template at inference")
    for overlap in report.overlap:
        share = overlap.found / overlap.rows
        text = f"{overlap.found:,} of {overlap.rows:,} rows ({share:.1%}) stand in {overlap.training_rows:,} rows"
        table.add_row("overlap", _safe(f"{overlap.evaluation}: {text}"))
    for file in report.not_compared:
        table.add_row("overlap", _safe(f"{file}: not compared, its kind is not known; unpack or convert it"))
    for name, count in report.repairs.items():
        table.add_row("repaired", f"{name}: {count:,} samples")
    for note in report.notes:
        table.add_row("template", _safe(note))
    table.add_row("time", f"{report.seconds:.1f} s")
    return table


def _counts(report: CheckReport) -> Table:
    from rich.table import Table

    table = Table("format", "rows", "source", "samples", box=None, pad_edge=False)
    for column in (1, 3):
        table.columns[column].justify = "right"
    formats = [(name, f"{count:,}") for name, count in report.formats.items()]
    sources = [(name, f"{count:,}") for name, count in list(report.sources.items())[:SOURCES]]
    if len(report.sources) > SOURCES:
        rest = sum(list(report.sources.values())[SOURCES:])
        sources.append((f"{len(report.sources) - SOURCES:,} more", f"{rest:,}"))
    for row in range(max(len(formats), len(sources))):
        left = formats[row] if row < len(formats) else ("", "")
        right = sources[row] if row < len(sources) else ("", "")
        table.add_row(left[0], left[1], _safe(right[0]), right[1])
    return table


def _histogram(report: CheckReport) -> Table:
    from rich.table import Table

    lengths = report.lengths
    names = ("min", "median", "mean", "p90", "p99", "max")
    title = "tokens a sample: " + ", ".join(f"{name} {lengths[name]:,.0f}" for name in names)
    table = Table("up to", "samples", "", box=None, pad_edge=False, title=title, title_justify="left")
    table.title_style = "none"
    for column in (0, 1):
        table.columns[column].justify = "right"
    most = max(bucket["samples"] for bucket in lengths["buckets"])
    for bucket in lengths["buckets"]:
        bar = "█" * round(BAR * bucket["samples"] / most) or ("▏" if bucket["samples"] else "")
        table.add_row(f"{bucket['up_to']:,}", f"{bucket['samples']:,}", bar)
    return table


def _finding(finding: Finding, files: list[str]) -> Table:
    from rich.table import Table

    colour = "red" if finding.severity == "error" else "yellow"
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(overflow="fold")  # a path cut with dots names no file
    table.add_row(f"[{colour}]{finding.severity}[/]", f"[bold]{finding.reason}[/]: {finding.count:,}")
    table.add_row("", _safe(finding.message))
    if finding.rows:
        more = f", and {finding.count - len(finding.rows):,} more" if finding.count > len(finding.rows) else ""
        table.add_row("", _safe(_short_places(finding.rows, files) + more))
    return table


def _short_places(places: list[str], files: list[str]) -> str:
    """Name each file once: ``a.jsonl rows 3, 5 (as 2); b.jsonl rows 7``."""
    groups: dict[str, list[str]] = {}
    for place in places:
        file = next((file for file in files if place.startswith(f"{file}:")), "")
        row = place.removeprefix(f"{file}:").replace(f"(as {file}:", "(as ")
        groups.setdefault(file, []).append(row)
    return "; ".join(f"{file} rows {', '.join(rows)}" if file else ", ".join(rows) for file, rows in groups.items())


def _safe(text: str) -> str:
    """Words from a data file: no terminal codes, no rich markup."""
    from rich.markup import escape

    from sengi.data.rows import printable

    return escape(printable(text, 4000))
