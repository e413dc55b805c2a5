"""The tables of a study's report as plain text cells: the page and the Markdown print the same ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sengi.report import formats
from sengi.report.study_numbers import ScoreText, score_text
from sengi.report.tables import Row, Table
from sengi.study.claim_rules import ClaimResult
from sengi.study.contrasts import Contrast
from sengi.study.findings import Correlation
from sengi.study.ranking import RankedRun, RankedSetting
from sengi.study.replay import Outcome
from sengi.study.results import RunResult, StudyResults
from sengi.study.space import settings_text

CORRELATION = ScoreText("correlation", 2)
RANKING_NOTE = (
    "In brackets: 95% intervals, which count {chance}. p is corrected for all comparisons by Holm's method; the best "
    "was chosen from the same scores, so that a close second may well be as good."
)
RUNS_NOTE = (
    "Differences to the best run are over the same questions or held-out conversations (right or wrong: Tango's score "
    "interval and McNemar's exact p; loss: jackknife and sign flips; other numbers: bootstrap and sign flips), p "
    "corrected by Holm. They compare two trained models, not two settings. The peak is the best evaluation on the way."
)


def settings_table(results: StudyResults, ranked: Sequence[RankedSetting]) -> Table:
    """All settings with a score, best first."""
    told = score_text(results)
    rows = []
    for place, one in enumerate(ranked, start=1):
        runs = f"{len(one.runs)}" + (f" of {len(one.runs) + len(one.others)}" if one.others else "")
        behind, p = formats.NOTHING, formats.NOTHING
        if one.against_best is not None:
            behind = _as_scores(one.against_best, results.minimize, told)
            p = formats.p_value(one.p_holm) if math.isfinite(one.p_holm) else formats.NOTHING
        cells = (
            str(place),
            settings_text(one.settings),
            runs,
            told.score_with(one.score.value, one.score.low, one.score.high),
            behind,
            p,
            one.word,
        )
        rows.append(Row(cells, one.word.replace(" ", "-")))
    chance = {part for one in ranked if one.against_best is not None for part in one.against_best.chance}
    counted = " and ".join(sorted(chance)) if chance else "nothing: one seed and no single results"
    head = ("", "settings", "runs", "score", "difference to the best", "p (Holm)", "")
    note = RANKING_NOTE.format(chance=counted)
    return Table("Settings, averaged over seeds", head, tuple(rows), (0, 2, 3, 4, 5), note)


def _as_scores(against: Contrast, minimize: bool, told: ScoreText) -> str:
    """A difference of qualities as one of scores."""
    value, low, high = against.value, against.low, against.high
    return told.difference_with(-value, -high, -low) if minimize else told.difference_with(value, low, high)


def runs_table(results: StudyResults, rows: Sequence[RankedRun]) -> Table:
    """All runs with a score, best first."""
    told = score_text(results)
    lines = []
    for row in rows:
        run, behind, p = row.run, formats.NOTHING, formats.NOTHING
        assert run.score is not None
        if row.paired is not None:
            d = row.paired.difference
            behind = told.difference_with(-d.value, -d.high, -d.low)
            p = formats.p_value(row.p_holm)
        lines.append(
            Row(
                (
                    f"{run.name} ({settings_text(run.settings)})",
                    told.score_with(run.score.value, run.score.low, run.score.high),
                    behind,
                    p,
                    formats.count(row.peak.samples),
                    formats.duration(row.peak.seconds),
                    formats.duration(run.seconds),
                    run.verdict[0] or formats.NOTHING,
                )
            )
        )
    head = (
        "run",
        "score",
        "difference to the best run",
        "p (Holm)",
        "samples to peak",
        "time to peak",
        "time",
        "verdict",
    )
    return Table("Runs", head, tuple(lines), (1, 2, 3, 4, 5, 6), RUNS_NOTE)


def unscored_table(results: StudyResults) -> Table:
    """Runs without a final score, and why."""
    rows = tuple(
        Row((f"{run.name} ({settings_text(run.settings)})", run.state, formats.count(run.samples_seen), _why(run)))
        for run in results.runs
        if run.score is None
    )
    note = "They are in the curves, and in no ranking, correlation or claim about final scores."
    return Table("Runs without a final score", ("run", "state", "samples", "why"), rows, (2,), note)


def _why(run: RunResult) -> str:
    return run.reason or {"running": "at work", "waiting": "not begun"}.get(run.state, "interrupted, it continues")


def verdict_table(results: StudyResults) -> Table:
    """The judge's last word on every run it judged."""
    rows = tuple(Row((run.name, run.verdict[0], run.verdict[1])) for run in results.runs if run.verdicts)
    return Table("The judge's last word on each run", ("run", "verdict", "reason"), rows)


def claims_table(results: StudyResults, claims: Sequence[ClaimResult]) -> Table:
    """The ten claims, each with what is seen here."""
    rows = tuple(Row(claim_cells(results, claim), claim.verdict.replace(" ", "-")) for claim in claims)
    head = ("", "the paper's claim", "here", "effect", "would have been seen", "why", "rests on")
    note = (
        "Effect: how far the runs speak for the claim, with its 95% interval; above zero is for it, in the unit of the "
        "score (claim 2: nats of training loss, claim 8: rank correlation). Would have been seen: the smallest effect "
        "that this study finds 4 times in 5. One percentage point of a share, or one percent of the best score, counts "
        "as equal, and as not worth having."
    )
    return Table("Do the paper's claims hold here?", head, rows, (0, 3, 4), note)


def claim_cells(results: StudyResults, claim: ClaimResult) -> tuple[str, ...]:
    """Number, claim, verdict, effect, detectable effect, reason and runs, as text."""
    told = {"score": score_text(results), "correlation": CORRELATION}.get(claim.unit, ScoreText("loss"))
    effect, seen = formats.NOTHING, formats.NOTHING
    if math.isfinite(claim.effect):
        effect = told.difference_with(claim.effect, claim.low, claim.high)
        seen = told.difference(claim.detectable).removeprefix("+")
    title = f"{claim.claim} (paper: {claim.paper})"
    return str(claim.number), title, claim.verdict, effect, seen, claim.reason, run_names(claim.runs)


def run_names(names: Sequence[str]) -> str:
    """Names of runs, those of one point together: 001-s1, s2; 002-s1."""
    points: dict[str, list[str]] = {}
    for name in names:
        point, _, seed = name.partition("-")
        points.setdefault(point, []).append(seed)
    return "; ".join(f"{point}-{', '.join(seeds)}" if seeds[0] else point for point, seeds in points.items())


def replay_table(results: StudyResults, outcomes: Sequence[Outcome]) -> Table:
    """What each policy of early stopping would have saved and cost."""
    told = score_text(results)
    rows = tuple(
        Row(
            (
                one.policy,
                formats.percent(one.saved, 0),
                f"{one.stopped:.1f}",
                told.difference_with(one.regret, one.low, one.high).replace("+", ""),
            ),
            "judge" if one.policy.startswith("judge") else "",
        )
        for one in outcomes
    )
    head = ("policy", "samples saved", "runs stopped", "regret")
    note = (
        "Recorded runs replayed in random orders, the same for every policy. Regret: how much worse the best run left "
        "is than the best of all, with its 95% interval over settings and seeds."
    )
    return Table("What stopping early would have saved, and cost", head, rows, (1, 2, 3), note)


def correlation_table(found: Sequence[Correlation]) -> Table:
    """Rank correlations of the early signals with the final quality."""
    rows = tuple(
        Row(
            (
                one.signal,
                CORRELATION.difference(one.value),
                f"{CORRELATION.difference(one.low)} to {CORRELATION.difference(one.high)}",
                "above 0" if one.expected > 0 else "below 0",
                "as claimed" if one.predicts else "the other way" if one.contradicts else "not told from chance",
                str(one.n),
            )
        )
        for one in found
    )
    head = ("signal", "rank correlation", "95% interval", "the claim", "here", "settings")
    note = "The interval counts settings, since seeds of one setting say nearly the same."
    if found and found[0].apart:
        note += f" {found[0].apart} run(s) of other data, phases or method are not among them."
    return Table("Early signals against the final score", head, rows, (1, 2, 5), note)
