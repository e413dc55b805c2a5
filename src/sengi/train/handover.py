"""From one phase to the next: the best checkpoint of a phase is chosen, and the next phase begins with it.

    phases.json      one record a phase that has ended: its candidates, the chosen one, samples seen

The record is written before the next phase begins, and from then on it says where the run is: whatever checkpoint of
an ended phase is the newest, the run goes on behind that phase, from the chosen one. So an interruption at any moment
continues exactly: without the record the phase ends once more (what is scored stays scored), with it the next one
begins once more. In the line of checkpoints to fall back to, the chosen one stands behind the last of its phase.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sengi import storage
from sengi.data.phases import Phase
from sengi.errors import CheckpointError, InputError, RecipeError, SengiError
from sengi.evaluate.run_evaluations import read_evaluation, read_tasks
from sengi.statistics.metrics import is_row_higher_better
from sengi.train.checkpoint import PREFIX
from sengi.train.evaluation import Evaluations
from sengi.train.run_context import RunContext

FILE = "phases.json"
HELDOUT = "heldout_loss"


@dataclass(frozen=True)
class Start:
    """Where a run goes on.

    Attributes:
        folder: the checkpoint to load, verified; ``facts`` its manifest.
        step: steps done; behind a phase, more than those of the checkpoint.
        begins_phase: whether its weights begin a phase.
    """

    folder: Path
    facts: dict[str, Any]
    step: int
    begins_phase: bool


class Handover:
    """The ends of a run's phases. All ranks hold one and call it together, but for :meth:`spared` and :meth:`place`.

    Attributes:
        records: of the phases that have ended and handed on their weights, as in phases.json.
    """

    def __init__(self, run: RunContext, evaluations: Evaluations) -> None:
        self.order, self.recipe = run.setup.steps, run.setup.resolved.recipe
        self.world, self.observer, self.folder = run.world, run.observer, run.folder.path
        self.evaluations = evaluations
        self.asked = self.recipe.phasing
        self.records: list[dict[str, Any]] = []

    @property
    def fresh(self) -> bool:
        """Whether a phase begins with new moments."""
        return self.asked.optimizer == "fresh"

    def check_select(self) -> None:
        """Find out before training whether the score that chooses checkpoints exists: the base model has it.

        Raises:
            RecipeError: it does not; names the scores there are.
        """
        if self.asked.select in ("last", HELDOUT):
            return
        self.evaluations.finish()  # the second process may still be at work on it

        def look() -> None:
            base = read_tasks(self.folder, self.evaluations.data).get(0)
            rows = [row for row in base["scores"] if row["group"] == "all"] if base is not None else []
            if rows and not any(_is(row, self.asked.select) for row in rows):
                names = [f"{row['task']}/{row['metric']}" for row in rows]
                near = get_close_matches(self.asked.select, names, n=3, cutoff=0.3) or names[:3]
                raise RecipeError(
                    f"phases.select: eval_tasks give no score '{self.asked.select}'; there is {', '.join(near)}"
                )

        self.world.on_first(look)

    def start(self, found: tuple[Path, dict[str, Any]] | None) -> Start | None:
        """Where to go on, given the newest valid checkpoint.

        A chosen checkpoint that cannot be used any more takes its record with it, aloud: the run goes on inside that
        phase, or chooses again at its end among the others.
        """

        def look() -> list[Any]:
            known = self._read()
            records, (path, facts) = list(known), found or (None, {"step": 0})
            chosen = None
            while records and int(facts["step"]) <= self.order.phases[len(records) - 1].last:
                folder = self.folder / f"{PREFIX}{records[-1]['chosen_step']}"
                chosen = [str(folder), facts] if folder == path else self._verified(folder)
                if chosen is not None:
                    break
                records.pop()
            if len(records) < len(known):
                self._write(records)
            return [records, chosen]

        self.records, chosen = self.world.on_first(look)
        if chosen is not None:
            return Start(Path(chosen[0]), chosen[1], self.order.phases[len(self.records) - 1].last, True)
        return Start(found[0], found[1], int(found[1]["step"]), False) if found is not None else None

    def is_due(self, step: int) -> bool:
        """Whether a phase that is not the last has come to its end, and no record says so yet."""
        phases = self.order.phases
        return len(self.records) < len(phases) - 1 and step == phases[len(self.records)].last

    def end_phase(self, step: int, model: nn.Module, autocast: torch.dtype | None) -> Path | None:
        """Score what is not scored yet, choose, and write the choice down.

        Args:
            step: steps done; their checkpoint is safe on disk.
            model: as trained up to here.
            autocast: dtype of the computation, or None for float32.

        Returns:
            The checkpoint to load; None where the chosen one is what ``model`` is now.

        Raises:
            SengiError: no checkpoint of the phase can be chosen.
        """
        self.evaluations.heldout(step, model, autocast)
        self.evaluations.tasks(step)
        if self.asked.select not in ("last", HELDOUT) and (failed := self.evaluations.finish()):
            self.observer.message(failed)
        record = self.world.on_first(lambda: self._conclude(len(self.records)))
        if record is None:
            raise SengiError(
                f"phase {self.order.phases[len(self.records)].name}: no checkpoint of it has a score of "
                f"'{self.asked.select}', so none can start the next phase; see evaluations/ and the messages above; "
                "the same command again scores what is missing"
            )
        self.records.append(record)
        after, chosen = self.order.phases[len(self.records)], f"{PREFIX}{record['chosen_step']}"
        score = "" if record["chosen_score"] is None else f" with {self.asked.select} {record['chosen_score']:.6g}"
        moments = "new optimizer moments" if self.fresh else "its optimizer moments"
        self.observer.message(
            f"phase {record['phase']} ended at step {step}: {chosen}{score} starts phase {after.name}, with {moments}"
        )
        return self.folder / chosen if record["chosen_step"] != step else None

    def finish(self) -> None:
        """Note the choice in the last phase, which starts nothing; after everything was scored."""
        if self.recipe.strategy == "stacked":
            return
        record = self.world.on_first(lambda: self._conclude(len(self.order.phases) - 1))
        if record is not None and record["chosen_step"] != record["last_step"]:
            self.observer.message(
                f"the best checkpoint of phase {record['phase']} by {self.asked.select} is {PREFIX}"
                f"{record['chosen_step']} ({record['chosen_score']:.6g})"
            )

    def spared(self) -> set[int]:
        """Steps whose checkpoints must stay: the best so far of the current phase, where a score chooses."""
        phase = self.order.phases[min(len(self.records), len(self.order.phases) - 1)]
        there = [int(path.name.removeprefix(PREFIX)) for path in storage.published(self.folder, PREFIX)]
        scores = self._scores([step for step in there if phase.first < step <= phase.last])
        return {step for step, _ in scores[:1]}

    def place(self, step: int) -> float:
        """Where the checkpoint of ``step`` stands in the line of those to fall back to."""
        for number, record in enumerate(self.records):
            if record["chosen_step"] == step:
                return self.order.phases[number].last + 0.5
        return step

    def _conclude(self, number: int) -> dict[str, Any] | None:
        """Choose in phase ``number`` and write it down; None where there is no candidate. On rank 0."""
        phase = self.order.phases[number]
        scores = self._scores(filter(self.evaluations.is_due, range(phase.first + 1, phase.last + 1)))
        if (best := self._best(phase, scores)) is None:
            return None
        step, score = best
        before = self.records[number - 1]["samples_up_to_chosen"] if number else 0
        record = {
            "phase": phase.name,
            "first_step": phase.first + 1,
            "last_step": phase.last,
            "select": self.asked.select,
            "candidates": [{"step": step, "score": score} for step, score in sorted(scores)],
            "chosen_step": step,
            "chosen_score": score,
            "samples_seen": phase.samples_seen(phase.last),
            "samples_seen_at_chosen": phase.samples_seen(step),
            "samples_up_to_chosen": before + phase.samples_seen(step) - phase.seen,
        }
        self._write([*self.records[:number], record])
        return record

    def _best(self, phase: Phase, scores: list[tuple[int, float]]) -> tuple[int, float | None] | None:
        """The best candidate that is on disk as it was saved, and its score; None without one."""
        if self.asked.select == "last":
            return phase.last, None
        for step, score in scores:
            if step == phase.last or self._verified(self.folder / f"{PREFIX}{step}") is not None:
                return step, score
        return None

    def _verified(self, folder: Path) -> list[Any] | None:
        """Folder and manifest of a checkpoint; one that does not verify is set aside, aloud."""
        try:
            return [str(folder), storage.verify(folder)]
        except CheckpointError as error:
            aside = f"; kept as {storage.set_aside(folder).name}" if folder.exists() else ""
            self.observer.message(f"{folder.name} was chosen to start a phase and cannot be used: {error}{aside}")
            return None

    def _scores(self, steps: Iterable[int]) -> list[tuple[int, float]]:
        """Step and score of those ``steps`` that are scored, the best first, of equals the earliest."""
        select, heldout = self.asked.select, self.evaluations.setup.heldout
        if select == "last":
            return []
        tasks = read_tasks(self.folder, self.evaluations.data) if select != HELDOUT else {}
        found: list[tuple[int, float]] = []
        sign = 1.0
        for step in steps:
            content = tasks.get(step, {})
            if heldout is not None and select == HELDOUT:
                content = read_evaluation(self.folder, step, "heldout", heldout.fingerprint)
            row = next((row for row in content.get("scores", []) if row["group"] == "all" and _is(row, select)), None)
            if row is not None and row["value"] is not None and math.isfinite(row["value"]):
                sign = -1.0 if is_row_higher_better(row) else 1.0
                found.append((step, float(row["value"])))
        return sorted(found, key=lambda one: (sign * one[1], one[0]))

    def _read(self) -> list[dict[str, Any]]:
        """Records of phases that handed on their weights; that of the last phase is only told."""
        path = self.folder / FILE
        if not path.exists():
            return []
        try:
            records: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["phases"]
            whole = all(
                record["phase"] == phase.name and phase.first < int(record["chosen_step"]) <= phase.last
                for phase, record in zip(self.order.phases, records, strict=False)
            )
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise InputError(f"{path}: was changed by hand; restore it, or choose another output_dir")
        return records[: len(self.order.phases) - 1]

    def _write(self, records: list[dict[str, Any]]) -> None:
        storage.write_json(self.folder / FILE, {"optimizer": self.asked.optimizer, "phases": records})


def _is(row: dict[str, Any], select: str) -> bool:
    """Whether a score is the one that ``select`` names: ``task/metric``, or the task alone."""
    if select == HELDOUT:
        return bool(row["task"] == "heldout" and row["metric"] == "loss")
    return select in (row["task"], f"{row['task']}/{row['metric']}")
