"""A run as the scheduler sees it: its state, its row in the table, its ending on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sengi import storage
from sengi.errors import StorageError
from sengi.recipe_sources import resolve_recipe
from sengi.study.recording import Dynamics, Point, final_score, history, method, read_mapping
from sengi.study.signals import History
from sengi.study.space import Run, settings_text
from sengi.train.alarms import Alarm

OUTCOME = "outcome.json"  # in the run folder: how the run ended, in the study's words
State = Literal["waiting", "running", "stopping", "finished", "stopped", "failed"]


@dataclass
class Watched:
    """One run.

    Attributes:
        run: what it is; ``recipe`` its keys and values.
        objective: of the study.
        state: ``stopping`` is asked to save, ``stopped`` was ended by the judge or an alarm.
        reason: why it failed or was stopped.
        stopped_at: check of the verdict that stopped it.
        score: of the last step, once it finished.
    """

    run: Run
    recipe: dict[str, Any]
    objective: str
    state: State = "waiting"
    reason: str = ""
    stopped_at: int | None = None
    score: Point | None = None
    dynamics: Dynamics = field(init=False)

    def __post_init__(self) -> None:
        self.dynamics = Dynamics(self.run.folder)
        recipe = resolve_recipe(values=dict(self.recipe)).recipe
        self._method = method(recipe)
        self._batch, self._warmup = recipe.effective_batch_size, recipe.warmup_count(int(self.recipe["max_steps"]))
        self._restore()

    @property
    def ended(self) -> bool:
        """Whether nothing is to be done for this run in this session."""
        return self.state in ("finished", "stopped", "failed")

    def _restore(self) -> None:
        """The state that an earlier session left; a failed run is tried again, an unfinished one continues."""
        outcome = read_mapping(self.run.folder / OUTCOME)
        if outcome.get("state") == "stopped":
            self.state, self.reason = "stopped", str(outcome.get("reason", ""))
            self.stopped_at = outcome.get("check")
        elif self._status() == "finished":  # perhaps the study was killed before it could note that
            self.finish()
        elif alarm := self._alarm():
            self._conclude("stopped", alarm.sentence)

    def _status(self) -> str:
        return str(read_mapping(self.run.folder / "status.json").get("state", ""))

    def _alarm(self) -> Alarm | None:
        """The alarm that stopped it, where its recipe says ``on_alarm: stop``; asked to continue, it would go on."""
        status = read_mapping(self.run.folder / "status.json")
        return Alarm(**status["alarm"]) if status.get("state") == "stopped" and status.get("alarm") else None

    def end(self, code: int, cause: str) -> None:
        """Note that its process ended: finished, stopped by the judge or an alarm, to be continued, or failed."""
        if code == 0 or self._status() == "finished":
            self.finish()
        elif self.state == "stopping" and (code == 3 or self._status() == "stopped"):
            self._conclude("stopped", self.reason)
        elif alarm := self._alarm():
            self._conclude("stopped", alarm.sentence)
        elif code == 3 or self._status() == "stopped":
            self.state = "waiting"  # asked to stop with the whole study: the next call continues it
        else:
            self._conclude("failed", cause)

    def finish(self) -> None:
        """Read the score; a finished run without one has failed its purpose, and says what it scored instead."""
        try:
            self.score = final_score(self.run.folder, self.objective)
        except StorageError as error:
            self._conclude("failed", str(error))
            return
        self._conclude("finished", "")

    def _conclude(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason
        facts = {"state": state, "reason": reason, "check": self.stopped_at}
        if read_mapping(self.run.folder / OUTCOME) != facts:
            storage.write_json(self.run.folder / OUTCOME, facts)

    def history(self) -> History:
        """What the judge sees of it."""
        text = settings_text(self.run.settings)
        records = self.dynamics.read()
        return history(self.run.name, text, records, self._batch, self._warmup, self.stopped_at, self._method)

    def row(self, verdict: tuple[str, str] | None) -> dict[str, Any]:
        """Its entry in study.json.

        Args:
            verdict: state and reason of the judge's last word on it.
        """
        records = self.dynamics.read()
        last = records[-1] if records else {}
        score = self.score
        interval = [score.low, score.high] if score is not None and math.isfinite(score.low + score.high) else None
        return {
            "name": self.run.name,
            "settings": self.run.settings,
            "seed": self.run.seed,
            "state": self.state,
            "reason": self.reason,
            "verdict": verdict[0] if verdict is not None else None,
            "verdict_reason": verdict[1] if verdict is not None else "",
            "score": score.value if score is not None else None,
            "interval": interval,
            "samples_seen": int(last.get("samples_seen", 0)),
            "seconds": sum(float(record["step_seconds"]) for record in records),
            "loss": last.get("loss"),
            "grad_norm": last.get("grad_norm"),
            "folder": str(self.run.folder),
        }
