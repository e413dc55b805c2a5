"""The first lines of a study's report: the best recipe, how sure that is, what it cost, and what to do next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sengi.evaluate.selection import Selection
from sengi.report import formats
from sengi.report.study_numbers import objective_text, score_text
from sengi.study.ranking import RankedSetting
from sengi.study.results import RunResult, StudyResults
from sengi.study.space import settings_text

NAMED = 3  # settings and runs named in a sentence
HOUR = 3600
FOLDER = "in a new study folder: the seeds of this one cannot change"


@dataclass(frozen=True)
class Headline:
    """What a reader must know who reads nothing else.

    Attributes:
        state: ``finished``, ``unfinished`` or ``running``.
        answer: the best settings and their score.
        sure: how sure that is.
        cost: what all runs took.
        next_steps: what to do now, most useful first.
        warnings: what needs a look.
    """

    state: str
    answer: str
    sure: tuple[str, ...]
    cost: str
    next_steps: tuple[str, ...]
    warnings: tuple[str, ...]


def headline(results: StudyResults, ranked: Sequence[RankedSetting], halves: Selection | None) -> Headline:
    """Sum a study up.

    Args:
        results: the study.
        ranked: of :func:`sengi.study.ranking.rank_settings`.
        halves: of :func:`sengi.study.ranking.chosen_on_half`.
    """
    open_runs = [run for run in results.runs if run.state in ("running", "unfinished", "waiting")]
    state = "finished" if not open_runs else "running" if any(r.state == "running" for r in open_runs) else "unfinished"
    if not ranked:
        answer = "No run has finished with a score yet, so there is no best recipe to name."
        return Headline(
            state, answer, (), cost_text(results), _next(results, ranked, open_runs), _warnings(results, ranked)
        )
    best = ranked[0]
    told = score_text(results)
    ends = ""
    if math.isfinite(best.score.low):
        ends = f" (95% interval {told.score(best.score.low)} to {told.score(best.score.high)})"
    so_far = "" if state == "finished" else " so far"
    answer = (
        f"Best of {_count(len(ranked), 'setting')}{so_far}: {settings_text(best.settings)}, "
        f"{objective_text(results.objective)} {told.score(best.score.value)}{ends}."
    )
    sure = _sure(results, ranked, halves)
    return Headline(
        state, answer, sure, cost_text(results), _next(results, ranked, open_runs), _warnings(results, ranked)
    )


def _sure(results: StudyResults, ranked: Sequence[RankedSetting], halves: Selection | None) -> tuple[str, ...]:
    others = ranked[1:]
    if not others:
        return ("It is the only setting with a score: nothing to compare it with.",)
    worse = [one for one in others if one.word == "worse"]
    ties = [one for one in others if one.word != "worse"]
    lines = []
    if not ties:
        all_others = "the other setting is" if len(worse) == 1 else f"all {len(worse)} other settings are"
        lines.append(f"Sure: {all_others} shown to be worse.")
    elif not any(one.against_best is not None and one.against_best.sure for one in others):
        lines.append("Not sure: one seed each and no single results, so nothing tells differences from chance.")
    else:
        named = "; ".join(settings_text(one.settings) for one in ties[:NAMED])
        more = f"; and {len(ties) - NAMED} more" if len(ties) > NAMED else ""
        said = "No other setting is"
        if worse:
            said = f"{len(worse)} of {_count(len(others), 'other setting')} {'is' if len(worse) == 1 else 'are'}"
        lines.append(f"{said} shown to be worse. Not told apart from the best: {named}{more}.")
    if max(len(one.runs) for one in ranked) == 1:
        lines.append("Every setting ran with one seed: the chance of training itself is not counted.")
    if halves is not None:
        lines.append(_halves(results, ranked, halves))
    return tuple(lines)


def _halves(results: StudyResults, ranked: Sequence[RankedSetting], halves: Selection) -> str:
    """The best of many looks better than it is; on questions that had no part in choosing it, it does not."""
    chosen = ranked[halves.best.checkpoint]
    shown = score_text(results).score(halves.best.score.value * (-1 if results.minimize else 1))
    same = halves.best.checkpoint == halves.swapped.checkpoint == 0
    who = "the same one is best" if same else f"the best is {settings_text(chosen.settings)}"
    other = ranked[halves.swapped.checkpoint]
    swapped = "" if same else f" (with the halves swapped: {settings_text(other.settings)})"
    return (
        f"Chosen on one half of the questions {who}{swapped}; it scores {shown} on the other half, which is "
        "free of the luck of being chosen."
    )


def cost_text(results: StudyResults) -> str:
    """Runs, samples, tokens, time and device hours in one sentence."""
    runs = [run for run in results.runs if run.history.samples_seen]
    if not runs:
        return "Nothing was trained yet."
    samples, tokens = sum(run.samples_seen for run in runs), sum(run.tokens for run in runs)
    parts = [f"{_count(len(runs), 'run')}", f"{formats.short_count(samples)} samples"]
    if tokens:
        parts.append(f"{formats.short_count(tokens)} tokens")
    parts.append(f"{formats.duration(sum(run.seconds for run in runs))} in steps")
    for device in sorted({run.device for run in runs}):
        hours = sum(run.seconds * run.devices for run in runs if run.device == device) / HOUR
        parts.append(f"{formats.number(hours, 3)} {device} hours")
    return f"Cost: {', '.join(parts)}."


def _next(results: StudyResults, ranked: Sequence[RankedSetting], open_runs: Sequence[RunResult]) -> tuple[str, ...]:
    steps = []
    if open_runs:
        states = Counter(run.state for run in open_runs)
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        steps.append(f"Let it finish ({counts}); sengi study resume {results.folder} continues it where nobody does.")
    steps += _edges(results, ranked)
    ties = [one for one in ranked if one.word == "not told apart"]
    if ranked and max(len(one.runs) for one in ranked) == 1 and len(ranked) > 1:
        names = "the best and those not told apart from it" if ties else "the best few"
        steps.append(f"Repeat {names} with two more seeds, {FOLDER}, before believing small differences.")
    elif ties:
        needed = f"more seeds ({FOLDER}), or more questions or held-out conversations"
        steps.append(f"Take any of those not told apart, the cheapest one say; to separate them takes {needed}.")
    if ranked and not open_runs:
        steps.append(f"Put the best settings into your recipe ({_best_request(ranked[0])}) and train in full.")
    return tuple(steps)


def _best_request(best: RankedSetting) -> str:
    return f"{best.runs[0].folder}/request.json has them"


def _edges(results: StudyResults, ranked: Sequence[RankedSetting]) -> list[str]:
    """A best value at the end of what was tried says that the search was too narrow."""
    lines = []
    for key in results.keys if len(ranked) > 1 else ():
        values = {one.settings[key] for one in ranked if _is_number(one.settings[key])}
        best = ranked[0].settings[key]
        if len(values) < 2 or not _is_number(best):
            continue
        shown = settings_text({key: best})
        if best == max(values):
            lines.append(f"Try higher: {shown} is the highest tried.")
        elif best == min(values) and best > 0:
            lines.append(f"Try lower: {shown} is the lowest tried.")
    return lines


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _warnings(results: StudyResults, ranked: Sequence[RankedSetting]) -> tuple[str, ...]:
    lines = []
    if failed := [run for run in results.runs if run.state == "failed"]:
        lines.append(
            f"{_count(len(failed), 'run')} failed and {_has(failed)} no score: {_named(failed)}; sengi study resume "
            f"{results.folder} tries again."
        )
    if alarmed := [run for run in results.runs if run.by_alarm]:
        more = f"; and {len(alarmed) - NAMED} more" if len(alarmed) > NAMED else ""
        causes = "; ".join(f"{run.name}, {run.reason}" for run in alarmed[:NAMED])
        lines.append(
            f"{_count(len(alarmed), 'run')} stopped by an alarm and {_has(alarmed)} no final score: {causes}{more}."
        )
    if behind := [one for one in ranked if one.lost]:
        named = "; ".join(f"{settings_text(one.settings)} ({_named(one.lost)})" for one in behind[:NAMED])
        more = f"; and {len(behind) - NAMED} more" if len(behind) > NAMED else ""
        lines.append(
            f"{_count(len(behind), 'setting')} lost a run and {'ranks' if len(behind) == 1 else 'rank'} behind those "
            f"that lost none, whatever the other runs scored: {named}{more}."
        )
    if stopped := [run for run in results.runs if run.state == "stopped" and not run.by_alarm]:
        lines.append(
            f"{_count(len(stopped), 'run')} stopped early by the judge and {_has(stopped)} no final score: "
            f"{_named(stopped)}. The ranking and the claims do not know how they would have ended."
        )
    if lacking := [run for run in results.runs if run.state == "finished" and run.score is None]:
        lines.append(f"{_count(len(lacking), 'run')} finished without a score: {_named(lacking)}: {lacking[0].reason}.")
    return tuple(lines)


def _named(runs: Sequence[RunResult]) -> str:
    names = ", ".join(run.name for run in runs[: 2 * NAMED])
    return names + (f" and {len(runs) - 2 * NAMED} more" if len(runs) > 2 * NAMED else "")


def _has(runs: Sequence[RunResult]) -> str:
    return "has" if len(runs) == 1 else "have"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
