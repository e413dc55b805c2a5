"""The phases of a phased run: where each begins, which checkpoint was chosen, and one table of all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sengi.report import formats
from sengi.report.curves import Numbers, positions
from sengi.report.run_folder import RunFolder, as_mapping, as_number
from sengi.report.tables import Row, Table


@dataclass(frozen=True, slots=True)
class Marks:
    """Steps that a chart marks.

    Attributes:
        axes: positions on each x axis (``step``, ``samples``, ``tokens``, ``time``), shape (k,).
        values: training loss there, shape (k,); NaN where it is not known.
        names: what to say of each.
    """

    axes: dict[str, Numbers]
    values: Numbers
    names: list[str]


def phases_of(run: RunFolder) -> list[dict[str, Any]]:
    """The plan's phases, with what phases.json says of each; none of a stacked run."""
    planned = run.plan.get("phases")
    if run.recipe.get("strategy") != "phased" or not isinstance(planned, list):
        return []
    records = {str(record.get("phase")): record for record in run.handovers}
    return [as_mapping(phase) | {"record": records.get(str(as_mapping(phase).get("name")), {})} for phase in planned]


def border_marks(run: RunFolder) -> Marks:
    """The ends of the phases that another one follows, as far as the run has come."""
    phases = phases_of(run)
    steps = [as_number(phase.get("last_step")) for phase in phases[:-1]]
    names = [f"phase {phase.get('name')} begins" for phase in phases[1:]]
    return _marks(run, steps, names)


def chosen_marks(run: RunFolder) -> Marks:
    """The checkpoints that were chosen."""
    records = [phase["record"] for phase in phases_of(run) if phase["record"]]
    names = [f"chosen of phase {record.get('phase')}" for record in records]
    return _marks(run, [as_number(record.get("chosen_step")) for record in records], names)


def _marks(run: RunFolder, steps: list[float], names: list[str]) -> Marks:
    known = run.dynamics["step"] if run.steps else np.empty(0)
    taken = [(step, name) for step, name in zip(steps, names, strict=True) if known.size and step <= known[-1]]
    at = np.array([step for step, _ in taken], dtype=np.float64)
    loss = np.interp(at, known, run.dynamics["loss"]) if at.size else np.empty(0)
    return Marks(positions(run, at), loss, [name for _, name in taken])


def phase_table(run: RunFolder) -> Table:
    """One row a phase: its data, its settings, its steps, and the checkpoint that was chosen in it."""
    phases = phases_of(run)
    asked = as_mapping(run.recipe.get("phases"))
    settings = ("samples an epoch", "of them replayed", "epochs", "batch", "learning rate", "steps")
    choice = ("chosen checkpoint", "its score", "samples seen", "up to the chosen")
    note = (
        f"Chosen by {asked.get('select', 'last')}; the next phase begins with it and with "
        f"{'new' if asked.get('optimizer', 'fresh') == 'fresh' else 'its'} optimizer moments. Samples seen count "
        "earlier phases in full, as the paper does; up to the chosen counts only what led to that checkpoint."
    )
    return Table(
        "The phases of this run", ("phase", *settings, *choice), tuple(map(_row, phases)), tuple(range(1, 11)), note
    )


def _row(phase: dict[str, Any]) -> Row:
    record = as_mapping(phase["record"])
    number = {key: as_number(value) for key, value in (phase | record).items()}

    def count(key: str) -> str:
        return formats.count(number.get(key, float("nan")))

    steps = f"{count('first_step')} to {count('last_step')}"
    score = formats.number(number.get("chosen_score", float("nan")))
    rate = formats.number(number.get("learning_rate", float("nan")), 3)
    settings = map(count, ("epoch_samples", "replayed_samples", "num_train_epochs", "effective_batch_size"))
    choice = (count("chosen_step"), score, count("samples_seen"), count("samples_up_to_chosen"))
    return Row((str(phase.get("name")), *settings, rate, steps, *choice))
