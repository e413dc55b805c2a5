"""The first lines of a report: where the run stands, and what it did to the scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sengi.report import formats
from sengi.report.alarms import alarms_of, suggestions_of
from sengi.report.run_folder import RunFolder, as_number
from sengi.report.scores import Comparison

State = Literal["finished", "running", "silent", "stopped", "failed", "unknown"]
# A run writes its heartbeat every few seconds; this long without one means that the process is gone or frozen.
SILENT_AFTER_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reader must know first.

    Attributes:
        state: ``silent`` is a running run whose heartbeat stopped.
        progress: one sentence on how far it came, and why it ended where it did.
        outcome: one sentence a result, whole tasks before controls.
        warnings: what needs a look; empty when nothing does.
    """

    state: State
    progress: str
    outcome: tuple[str, ...]
    warnings: tuple[str, ...]


def judge_run(run: RunFolder, comparisons: list[Comparison], now: float) -> Verdict:
    """Sum a run up.

    Args:
        run: the run.
        comparisons: its scores before and after.
        now: time of the report, unix seconds; decides whether a running run went silent.
    """
    state = _state(run, now)
    # The second way to count multiple choice is in the tables; the first lines keep to one.
    comparisons = [c for c in comparisons if c.before.metric != "accuracy_sum" and not c.part_of]
    outcome = tuple(_outcome(c) for c in _headlines(comparisons))
    if not outcome:
        outcome = ("No score was taken yet, so this page cannot say whether the training helped.",)
    progress = _progress(run, state, now)
    alarms = [alarm.sentence for alarm in alarms_of(run) if alarm.seen not in progress]
    return Verdict(state, progress, outcome, (*alarms, *_warnings(run, comparisons)))


def _state(run: RunFolder, now: float) -> State:
    state = run.status.get("state")
    if state == "running":
        silence = now - as_number(run.status.get("heartbeat"))
        return "silent" if silence > SILENT_AFTER_SECONDS else "running"
    for known in ("finished", "stopped", "failed"):
        if state == known:
            return known
    return "unknown"


def _progress(run: RunFolder, state: State, now: float) -> str:
    step, planned = steps_taken(run), steps_planned(run)
    where = f"step {formats.count(step)} of {formats.count(planned)}" if math.isfinite(planned) else ""
    where = where or (f"step {formats.count(step)}" if math.isfinite(step) else "before its first step")
    reason = str(run.status.get("reason") or "").strip()
    because = f": {reason}" if reason else ""
    silence = formats.duration(now - as_number(run.status.get("heartbeat")))
    return {
        "finished": f"Finished at {where}{because}.",
        "running": f"Running, at {where} when this page was written; last sign of life {silence} before.",
        "silent": f"Written as running at {where}, but without a sign of life for {silence}: the process is gone "
        "or frozen. The same command continues the run.",
        "stopped": f"Stopped at {where}{because}. The same command continues the run.",
        "failed": f"Failed at {where}{because}.",
        "unknown": f"No state was written (status.json); the records end at {where}.",
    }[state].replace("..", ".")


def steps_taken(run: RunFolder) -> float:
    """Optimizer steps taken: the last step record, else what the status says; NaN when neither does."""
    return float(run.dynamics["step"][-1]) if run.steps else as_number(run.status.get("step"))


def steps_planned(run: RunFolder) -> float:
    """Optimizer steps of the whole run by the plan, else by the status; NaN when neither says."""
    planned = as_number(run.plan.get("steps"))
    return planned if math.isfinite(planned) else as_number(run.status.get("max_steps"))


def non_finite_steps(run: RunFolder) -> list[int]:
    """Steps whose loss or gradient norm is missing, NaN or infinite."""
    if not run.steps:
        return []
    finite = np.isfinite(run.dynamics["loss"]) & np.isfinite(run.dynamics["grad_norm"])
    return [int(step) for step in run.dynamics["step"][~finite]]


def _headlines(comparisons: list[Comparison]) -> list[Comparison]:
    """For each task and metric: what was taught, else all; then its controls."""
    chosen: list[Comparison] = []
    for key in dict.fromkeys((c.before.task, c.before.metric) for c in comparisons):
        rows = [c for c in comparisons if (c.before.task, c.before.metric) == key]
        taught = [c for c in rows if c.before.group.rpartition("=")[2] == "taught"]
        whole = [c for c in rows if c.before.group == "all"]
        chosen += (taught or whole or rows)[:1] + [c for c in rows if c.is_control][:1]
    return chosen


def _outcome(c: Comparison) -> str:
    before, after = (formats.score(s.value, s.metric) for s in (c.before, c.after))
    group = c.before.group.rpartition("=")[2]
    name = f"{_metric_name(c)}{'' if group == 'all' else f' ({group})'}"
    if c.change == "one evaluation only":
        return f"{name}: {before} at step {c.step_before}, scored once."
    sure = ""
    if c.paired:
        sure = f", {formats.difference(c.paired.difference.value, c.before.metric)}"
    return f"{name}: {before} → {after}{sure} ({c.change})."


def _metric_name(c: Comparison) -> str:
    """A score's name at the start of a sentence."""
    metric = formats.metric(c.before.metric)
    if (c.before.task, metric) == ("heldout", "loss"):
        return "Held-out loss"
    return f"{metric.capitalize()} on {c.before.task}"


def _warnings(run: RunFolder, comparisons: list[Comparison]) -> list[str]:
    planned = run.plan.get("warnings")
    found = [str(line) for line in planned] if isinstance(planned, list) else []
    found += [f"{line.key} {line.value} → {line.suggestion}: {line.reason}." for line in suggestions_of(run)]
    if bad := non_finite_steps(run):
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        found.append(f"Loss or gradient norm is not a finite number at {len(bad)} steps ({shown}).")
    for c in comparisons:
        if c.is_control and c.change == "better":
            found.append(
                f"Control questions of {c.before.task} improved although the data does not answer them: look for "
                "leaks, or for a format that alone raises the score."
            )
        elif c.before.group == "all" and c.change == "worse":
            found.append(f"{_metric_name(c)} got worse.")
    return found
