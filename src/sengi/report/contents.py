"""What a report says, before it is a page or Markdown: one object, filled once from the run folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sengi.report import formats
from sengi.report.alarms import alarm_table, alarms_of
from sengi.report.curves import POINTS, SMOOTH_FROM, clipped_share
from sengi.report.phases import phase_table
from sengi.report.recipe_tables import commands, paper_table, recipe_table, throughput_table
from sengi.report.reference import reference_tables
from sengi.report.run_folder import RunFolder, as_mapping, as_number, read_run
from sengi.report.scores import Comparison, Example, compare_scores, pick_examples
from sengi.report.tables import (
    Table,
    data_tables,
    environment_table,
    milestone_table,
    score_tables,
    topic_tables,
)
from sengi.report.timeline import timeline_table
from sengi.report.verdict import Verdict, judge_run, steps_planned, steps_taken


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that page and Markdown print.

    Attributes:
        run: the folder it was read from.
        title: model and folder name.
        written: time of writing, UTC, to the minute.
        verdict: state, outcome and warnings.
        figures: the handful of numbers for the top: (label, value).
        comparisons: scores before and after, as the tables print them.
        scores: one table a task and metric.
        reference: the paper's scores, where they were asked for.
        examples: answers before and after.
        milestones: the curves in numbers.
        phases: one row a phase; no rows in a stacked run.
        timeline: scores over the training; no rows where they were taken before and after only.
        topics: own questions by topic, taught beside control; none where they have no topics or groups.
        data, paper, recipe, throughput, environment: tables.
        lengths: edges and counts of the length histogram; both empty without a plan.
        alarms: one row an alarm; no rows in a run without.
        curve_notes: what was thinned, smoothed and clipped.
        commands: (purpose, command).
    """

    run: RunFolder
    title: str
    written: str
    verdict: Verdict
    figures: list[tuple[str, str]]
    comparisons: list[Comparison]
    scores: list[Table]
    reference: list[Table]
    examples: list[Example]
    milestones: Table
    phases: Table
    alarms: Table
    timeline: Table
    topics: list[Table]
    data: list[Table]
    lengths: tuple[list[float], list[float]]
    paper: Table
    recipe: Table
    throughput: Table
    environment: Table
    curve_notes: list[str]
    commands: list[tuple[str, str]]


def build_report(path: Path, now: float, reference: bool = False) -> Report:
    """Read a run folder and prepare its report.

    Args:
        path: the run folder.
        now: time of the report, unix seconds.
        reference: with the paper's scores beside those of the run.

    Raises:
        InputError: ``path`` is no run folder.
    """
    run = read_run(path)
    comparisons = compare_scores(run)
    model = str(run.recipe.get("model_name_or_path") or "Unknown model")
    return Report(
        run=run,
        title=f"{model} · {path.resolve().name}",
        written=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=judge_run(run, comparisons, now),
        figures=_figures(run),
        comparisons=comparisons,
        scores=score_tables(comparisons),
        reference=reference_tables(run, comparisons) if reference else [],
        examples=pick_examples(run),
        milestones=milestone_table(run),
        phases=phase_table(run),
        alarms=alarm_table(alarms_of(run)),
        timeline=timeline_table(run),
        topics=topic_tables(run),
        data=data_tables(run),
        lengths=_lengths(run),
        paper=paper_table(run),
        recipe=recipe_table(run),
        throughput=throughput_table(run),
        environment=environment_table(run),
        curve_notes=_curve_notes(run),
        commands=commands(run),
    )


def _figures(run: RunFolder) -> list[tuple[str, str]]:
    """The numbers at the top of the page; what is not known is left out."""
    d = run.dynamics
    planned = steps_planned(run)
    samples = float(d["samples_seen"][-1]) if run.steps else as_number(run.status.get("samples_seen"))
    of = f" / {formats.count(planned)}" if math.isfinite(planned) else ""
    batch = run.recipe.get("effective_batch_size")
    each = "" if batch is None else f", {formats.setting(batch)} a step"
    figures = [
        ("steps", formats.count(steps_taken(run)) + of),
        (f"samples seen{each}", formats.short_count(samples)),
    ]
    if run.steps:
        rows = {row.cells[0]: row.cells[1] for row in throughput_table(run).rows}
        figures += [
            ("last training loss", formats.number(float(d["loss"][-1]))),
            ("last gradient norm", formats.number(float(d["grad_norm"][-1]), 3)),
            ("tokens per second", rows.get("tokens per second, median step", formats.NOTHING)),
            ("time in steps", rows.get("time in steps", formats.NOTHING)),
        ]
    return [(label, value) for label, value in figures if not value.startswith(formats.NOTHING)]


def _lengths(run: RunFolder) -> tuple[list[float], list[float]]:
    histogram = as_mapping(as_mapping(run.plan.get("data")).get("length_histogram"))
    edges, counts = (histogram.get(key) for key in ("edges", "counts"))
    if not isinstance(edges, list) or not isinstance(counts, list):
        return [], []
    return [as_number(edge) for edge in edges], [as_number(count) for count in counts]


def _curve_notes(run: RunFolder) -> list[str]:
    if not run.steps:
        return []
    notes = ["The gradient norm is taken before clipping."]
    if run.steps > POINTS:
        notes.append(
            f"Drawn are at most {POINTS:,} of {run.steps:,} steps: the lowest and the highest of every stretch, so "
            "no peak is lost."
        )
    if run.steps >= SMOOTH_FROM:
        notes.append("The strong line is a moving median, the faint one every step.")
    share = clipped_share(run)
    if math.isfinite(share):
        notes.append(f"{formats.percent(share)} of the steps were clipped.")
    return notes
