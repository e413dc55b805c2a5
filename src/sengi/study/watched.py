"""A run as the scheduler sees it: its state, its row in the table, its ending on disk."""

from __future__ import annotations

import contextlib
import math
import signal
from dataclasses import dataclass, field
from typing import Any, Literal

from sengi import storage
from sengi.errors import StorageError
from sengi.recipe_sources import resolve_recipe
from sengi.study.recording import Dynamics, Point, final_score, group, has_objective, history, read_mapping
from sengi.study.signals import History
from sengi.study.space import Run, settings_text
from sengi.study.verdicts import Word
from sengi.train.alarms import Alarm

OUTCOME = "outcome.json"  # in the run folder: how the run ended, in the study's words
BY_SIGNAL = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)  # codes of such a death
State = Literal["waiting", "running", "stopping", "finished", "stopped", "failed"]


@dataclass
class Watched:
    """One run.

    Attributes:
        run: what it is; ``recipe`` its keys and values.
        objective: of the study.
        state: ``stopping`` is asked to save, ``stopped`` was ended by the judge or an alarm.
        reason: why it failed or was stopped, or who else trains a run that waits.
        stopped_at: check of the verdict that stopped it.
        heard: samples it had seen when it was started, or the judge was asked last.
        score: of the last step, once it finished.
    """

    run: Run
    recipe: dict[str, Any]
    objective: str
    state: State = "waiting"
    reason: str = ""
    stopped_at: int | None = None
    heard: int = 0
    score: Point | None = None
    dynamics: Dynamics = field(init=False)
    _found: dict[str, Any] = field(init=False, default_factory=dict)  # status.json before this session's training

    def __post_init__(self) -> None:
        self.dynamics = Dynamics(self.run.folder)
        recipe = resolve_recipe(values=dict(self.recipe)).recipe
        self._group, self._scored = group(recipe), False
        asked = {"questions": recipe.eval_questions, "tasks": recipe.eval_tasks}
        self._kinds = [kind for kind, wanted in asked.items() if wanted]
        self._batch, self._warmup = recipe.effective_batch_size, recipe.warmup_count(int(self.recipe["max_steps"]))
        self._restore()

    @property
    def ended(self) -> bool:
        """Whether nothing is to be done for this run in this session."""
        return self.state in ("finished", "stopped", "failed")

    @property
    def lost(self) -> bool:
        """Whether it failed or an alarm stopped it: it has no score to come, so nothing is held against it."""
        return self.state == "failed" or (self.state == "stopped" and self.stopped_at is None)

    @property
    def samples_seen(self) -> int:
        """Samples it trained on."""
        steps = self.dynamics.read()
        return steps[-1].samples_seen if steps else 0

    def _restore(self) -> None:
        """The state that an earlier session left; a failed run is tried again, an unfinished one continues."""
        outcome = read_mapping(self.run.folder / OUTCOME)
        if outcome.get("state") == "stopped":
            self.state, self.reason = "stopped", str(outcome.get("reason", ""))
            self.stopped_at = outcome.get("check")
        elif self._status().get("state") == "finished":  # perhaps the study was killed before it could note that
            with contextlib.suppress(StorageError):  # its last evaluation failed: 'sengi train' makes up for it
                self.score = final_score(self.run.folder, self.objective)
                self._conclude("finished", "")
        elif alarm := self._alarm():
            self._conclude("stopped", alarm.sentence)

    def begin(self) -> None:
        """Note that its training is about to start; how an earlier one ended is history."""
        (self.run.folder / OUTCOME).unlink(missing_ok=True)
        self._found = read_mapping(self.run.folder / "status.json")
        self.state, self.reason, self.heard = "running", "", self.samples_seen

    def condemn(self, check: int, reason: str) -> None:
        """Stop a run that waits: the judge had said so, and the study died before the training ended."""
        self.stopped_at = check
        self._conclude("stopped", reason)

    def go_on(self) -> None:
        """Take back that the judge stopped it: it waits, and continues from its checkpoint."""
        self.state, self.reason, self.stopped_at = "waiting", "", None
        (self.run.folder / OUTCOME).unlink(missing_ok=True)

    def _status(self) -> dict[str, Any]:
        """status.json of this session's training; what an earlier one left says nothing of this one."""
        status = read_mapping(self.run.folder / "status.json")
        return {} if status == self._found else status

    def _alarm(self) -> Alarm | None:
        """The alarm that stopped it, where its recipe says ``on_alarm: stop``; asked to continue, it would go on."""
        status = self._status()
        return Alarm(**status["alarm"]) if status.get("state") == "stopped" and status.get("alarm") else None

    def end(self, code: int, cause: str, asked: bool) -> None:
        """Note that its process ended: finished, stopped by the judge or an alarm, to be continued, or failed.

        Args:
            code: of its process; ``cause`` its last error.
            asked: whether the whole study was asked to stop.
        """
        state = self._status().get("state")
        stopped = code == 3 or state == "stopped"
        early = code in BY_SIGNAL and state != "failed"  # the signal came before anything in it could catch one
        if code == 0 or state == "finished":
            self.finish()
        elif self.state == "stopping" and (stopped or early):
            self._conclude("stopped", self.reason)
        elif alarm := self._alarm():
            self._conclude("stopped", alarm.sentence)
        elif stopped or (asked and early):
            self.state = "waiting"  # the next call continues it
        else:
            self._conclude("failed", cause)

    def check_objective(self) -> None:
        """Find out whether it will have a score, once its base model has been scored.

        Raises:
            InputError: it will not; no run of the study would.
        """
        if self.state == "running" and not self._scored:
            self._scored = has_objective(self.run.folder, self.objective, self._kinds)

    def finish(self) -> None:
        """Read the score; a finished run without one has failed its purpose, and says what it scored instead."""
        try:
            self.score = final_score(self.run.folder, self.objective)
        except StorageError as error:
            why = self._status().get("reason")  # of an evaluation that failed, after which training goes on
            self._conclude("failed", f"{error}; {why}" if why else str(error))
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
        steps = self.dynamics.read()
        return history(self.run.name, text, steps, self._batch, self._warmup, self.stopped_at, self._group)

    def row(self, verdict: Word | None) -> dict[str, Any]:
        """Its entry in study.json.

        Args:
            verdict: the judge's last word on it.
        """
        self.dynamics.read()
        last, score = self.dynamics.last, self.score
        interval = [score.low, score.high] if score is not None and math.isfinite(score.low + score.high) else None
        return {
            "name": self.run.name,
            "settings": self.run.settings,
            "seed": self.run.seed,
            "state": self.state,
            "reason": self.reason,
            "verdict": verdict.state if verdict is not None else None,
            "verdict_reason": verdict.reason if verdict is not None else "",
            "score": score.value if score is not None else None,
            "interval": interval,
            "samples_seen": self.samples_seen,
            "seconds": self.dynamics.seconds,
            "loss": last.get("loss"),
            "grad_norm": last.get("grad_norm"),
            "folder": str(self.run.folder),
        }
