"""What a study's report says, before it is a page or Markdown: one object, filled once from the study folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sengi.errors import InputError
from sengi.report import formats
from sengi.report.study_audit import audit_sentences
from sengi.report.study_curves import EarlySignal, Mark, RunCurve, early_signals, marks, run_curves
from sengi.report.study_headline import Headline, headline
from sengi.report.study_maps import HeatMap, heat_maps
from sengi.report.study_numbers import ScoreText, score_text
from sengi.report.study_tables import (
    claims_table,
    correlation_table,
    replay_table,
    runs_table,
    settings_table,
    unscored_table,
    verdict_table,
)
from sengi.report.tables import Table
from sengi.study.claim_rules import ClaimResult
from sengi.study.claims import judge_claims
from sengi.study.findings import correlations
from sengi.study.ranking import RankedSetting, chosen_on_half, rank_runs, rank_settings
from sengi.study.replay import FEWEST
from sengi.study.replay_study import replay_study
from sengi.study.results import StudyResults, read_results
from sengi.study.study_presets import PRESETS

MOST_REPLAYED = 48  # runs whose replay takes seconds; beyond, 'sengi study replay' is asked for it


@dataclass(frozen=True)
class StudyReport:
    """Everything that page and Markdown print.

    Attributes:
        results: the study it was read from.
        title, written: of the page; the second in UTC, to the minute.
        headline: the first lines.
        question: of the study preset that it was made from, and the paper's answer; empty without one.
        figures: the handful of numbers for the top: (label, value).
        ranked: settings, best first.
        settings, runs, unscored, verdicts, replay, signals, claims_table: tables.
        claims: the ten claims.
        curves, marks, early: what is drawn.
        maps: heat maps of the grid; ``map_note`` says why there are none.
        findings: of audited runs and of the replay, in words.
        commands: (purpose, command).
    """

    results: StudyResults
    title: str
    written: str
    headline: Headline
    question: tuple[str, ...]
    figures: list[tuple[str, str]]
    ranked: list[RankedSetting]
    settings: Table
    runs: Table
    unscored: Table
    verdicts: Table
    replay: Table
    signals: Table
    claims_table: Table
    claims: list[ClaimResult]
    curves: list[RunCurve]
    marks: list[Mark]
    early: list[EarlySignal]
    maps: list[HeatMap]
    map_note: str
    findings: list[str]
    commands: list[tuple[str, str]]

    @property
    def numbers(self) -> ScoreText:
        """How its scores are printed."""
        return score_text(self.results)


def build_study_report(folder: Path, now: float) -> StudyReport:
    """Read a study folder and prepare its report.

    Args:
        folder: the study folder, finished or not.
        now: time of the report, unix seconds.

    Raises:
        InputError: it is no study folder.
    """
    results = read_results(folder)
    ranked, claims, curves = rank_settings(results), judge_claims(results), run_curves(results)
    replayed, findings = _replay(results)
    maps = [] if results.searched else heat_maps(ranked, results.keys)
    recordings = results.recordings()
    found = correlations(recordings, results.judge, results.minimize) if recordings and results.judge.checks() else []
    return StudyReport(
        results=results,
        title=f"{folder.resolve().name}: {', '.join(results.keys)}",
        written=datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=headline(results, ranked, chosen_on_half(results, ranked)),
        question=_question(results),
        figures=_figures(results),
        ranked=ranked,
        settings=settings_table(results, ranked),
        runs=runs_table(results, rank_runs(results)),
        unscored=unscored_table(results),
        verdicts=verdict_table(results),
        replay=replayed,
        signals=correlation_table([one for one in found if math.isfinite(one.value)]),
        claims_table=claims_table(results, claims),
        claims=claims,
        curves=curves,
        marks=marks(results, curves),
        early=early_signals(results),
        maps=maps,
        map_note="" if maps else _no_map(results, ranked),
        findings=[*audit_sentences(results), *findings],
        commands=_commands(results, ranked),
    )


def _question(results: StudyResults) -> tuple[str, ...]:
    preset = PRESETS.get(results.preset)
    return (preset.question, f"The paper: {preset.answer} ({preset.source})") if preset is not None else ()


def _replay(results: StudyResults) -> tuple[Table, list[str]]:
    """The replay where it is cheap, else how to get it."""
    empty, runs = replay_table(results, []), len(results.scored)
    if runs < FEWEST:
        return empty, [f"A replay needs {FEWEST} finished runs or more, here are {runs}."]
    if runs > MOST_REPLAYED:
        return empty, [f"With {runs} runs a replay takes a while: sengi study replay {results.folder} makes it."]
    try:
        replayed = replay_study(results.folder)
    except InputError as error:
        return empty, [f"No replay: {error}."]
    return replay_table(results, replayed.outcomes), replayed.findings


def _figures(results: StudyResults) -> list[tuple[str, str]]:
    """The numbers at the top of the page."""
    runs = results.runs
    hours = {d: sum(run.seconds * run.devices for run in runs if run.device == d) / 3600 for d in ("GPU", "core")}
    used = sum(run.samples_seen for run in runs)
    figures = [
        ("runs with a score", f"{len(results.scored)} / {len(runs)}"),
        ("seeds", str(len(results.seeds))),
        ("samples a run", formats.short_count(results.budget_samples)),
        ("samples of all runs", formats.short_count(used)),
        ("time in steps", formats.duration(sum(run.seconds for run in runs))),
    ]
    return figures + [(f"{device} hours", formats.number(value, 3)) for device, value in hours.items() if value > 0]


def _no_map(results: StudyResults, ranked: list[RankedSetting]) -> str:
    if results.searched:
        return "The points were searched, so there is no grid to draw; the ranking lists them."
    if not ranked:
        return "No run has a score yet."
    return "Only one setting has a score, so there is nothing to draw."


def _commands(results: StudyResults, ranked: list[RankedSetting]) -> list[tuple[str, str]]:
    folder = results.folder
    commands = [
        ("Continue the study, or try failed runs again", f"sengi study resume {folder}"),
        ("What stopping early would have saved and cost", f"sengi study replay {folder}"),
    ]
    if ranked:
        best = ranked[0].runs[0].folder
        commands.append(("The report of the best setting's first run", f"sengi report {best}"))
        again = f"sengi train {best}/request.json --set output_dir=runs/best"
        commands.append(("Train the best settings again, in a folder of their own", again))
    return commands
