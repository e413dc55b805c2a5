"""The alarms of a run, found again in its step records, and the advice that its recipe would get today."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import ValidationError

from sengi.recipe import Recipe
from sengi.report import formats
from sengi.report.curves import positions
from sengi.report.phases import Marks
from sengi.report.run_folder import RunFolder, as_mapping, as_number
from sengi.report.tables import Row, Table
from sengi.train.advice import Advice, advise
from sengi.train.alarms import Alarm, find_alarms

NEEDED = ("step", "epoch", "loss", "grad_norm", "half_grad_norm", "half_share", "learning_rate")


def alarms_of(run: RunFolder) -> list[Alarm]:
    """All alarms by step; a loss or norm that was not finite has no step record, and is in the status."""
    planned = as_number(run.plan.get("steps"))
    found = find_alarms(_records(run), int(planned) if math.isfinite(planned) else None)
    last = as_mapping(run.status.get("alarm"))
    if last.get("kind") == "not finite" and math.isfinite(step := as_number(last.get("step"))):
        seen, cause, cure = (str(last.get(key) or "") for key in ("seen", "cause", "cure"))
        found.append(Alarm(int(step), "not finite", seen, cause, cure))
    return found


def _records(run: RunFolder) -> Iterator[dict[str, Any]]:
    columns = {key: run.dynamics[key] for key in NEEDED if key in run.dynamics}
    for place, phase in enumerate(run.phases):
        yield {"phase": phase, **{key: float(column[place]) for key, column in columns.items()}}


def alarm_table(alarms: list[Alarm]) -> Table:
    """One row an alarm: what was seen, its likely cause, what to do."""
    rows = tuple(Row((formats.count(a.step), a.kind, a.seen, a.cause, a.cure)) for a in alarms)
    head = ("step", "alarm", "what was seen", "cause", "what to do")
    note = (
        "Found again in the step records by the same rule as during the run, once for each time that a sign came up; "
        "none while the rate warms up."
    )
    return Table("Alarms", head, rows, (0,), note)


def alarm_marks(run: RunFolder) -> Marks:
    """Where the alarms lie on the curves; those of steps without a record lie nowhere."""
    known = run.dynamics["step"] if run.steps else np.empty(0)
    alarms = [alarm for alarm in alarms_of(run) if alarm.step in known]
    at = np.array([alarm.step for alarm in alarms], dtype=np.float64)
    loss = np.interp(at, known, run.dynamics["loss"]) if at.size else np.empty(0)
    return Marks(positions(run, at), loss, [alarm.kind for alarm in alarms])


def suggestions_of(run: RunFolder) -> list[Advice]:
    """What the evidence would change in the run's recipe; nothing where recipe or plan cannot be read."""
    try:
        return [line for line in advise(Recipe.model_validate(run.recipe), run.plan) if line.suggestion]
    except (ValidationError, KeyError, TypeError, ValueError):
        return []
