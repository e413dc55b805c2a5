"""Scores of a run while it trains: held-out loss, the recipe's questions, and its tasks at each evaluation point.

What is asked never reaches the training: held-out loss reads the model, everything else is asked of a checkpoint on
disk, loaded beside it, with all random state put back (undisturbed.py). Scores land in ``evaluations/``, never in
dynamics.jsonl (see run_evaluations.py for why).

An evaluation of tasks that fails does not end the run. Its cause is told, kept in status.json under
``evaluations_failed`` and repeated at the end; the command still exits with 0, because the model is trained. The next
``sengi train`` on the folder tries again what lies on disk unscored, and ``sengi eval RUN`` does so at any time.
Three failures do end it: of the base model before anything is trained (a mistake in the recipe is found then, at no
cost), of the disk, and a request to stop.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sengi import storage
from sengi.errors import StoppedByRequest, StorageError
from sengi.evaluate.checkpoints import score_step
from sengi.evaluate.heldout import heldout_items, heldout_losses, heldout_scores
from sengi.evaluate.run_evaluations import read_tasks
from sengi.evaluate.tasks import evaluate_questions
from sengi.inference.vllm_engine import without_vllm
from sengi.train.background import Background, Job
from sengi.train.checkpoint import PREFIX
from sengi.train.patience import on_first_patiently
from sengi.train.run_context import RunContext
from sengi.train.run_folder import has_begun
from sengi.train.run_plan import QUEUE
from sengi.train.schedule import evaluation_is_due
from sengi.train.setup import Setup
from sengi.train.undisturbed import undisturbed

POLL = 0.2  # seconds between looks at the second process where nothing else is to do


class Evaluations:
    """Everything a run scores. All ranks hold one and call it together, but for :meth:`poll` and :meth:`close`.

    Attributes:
        failed: step -> cause, of evaluations of tasks that failed in this session; on rank 0.
    """

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self.world, self.observer, self.stop, self.folder = run.world, run.observer, run.stop, run.folder
        self.recipe, self.suite = run.setup.resolved.recipe, run.setup.suite
        self.failed: dict[int, str] = {}
        self._remarks: set[str] = set()
        self._data, self._second = run.setup.suite_data, None
        if self.suite is not None and run.world.first and self.recipe.eval_process == "second":
            self._second = Background(run.folder.path, self.suite, self._data, max(1, torch.get_num_threads() // 2))

    @property
    def setup(self) -> Setup:
        """Recipe, store, order, and the plan as it is now."""
        return self._run.setup

    def is_due(self, step: int) -> bool:
        """Whether ``step`` is an evaluation point."""
        return evaluation_is_due(self.recipe, self.setup.steps, step)

    def needs_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint must be on disk: tasks are scored at ``step``, or a score may choose it for a phase."""
        return (self.suite is not None or self.recipe.phasing.select != "last") and self.is_due(step)

    @property
    def data(self) -> str:
        """Fingerprint of the recipe's tasks; empty without any."""
        return self._data

    def before_training(self) -> None:
        """Questions and tasks of the base model, and tasks of checkpoints that an earlier session left unscored."""
        self.questions(0)
        for step in self.world.on_first(self._unscored) if self.suite is not None else []:
            self.tasks(step)

    def heldout(self, step: int, model: nn.Module, autocast: torch.dtype | None) -> None:
        """Held-out loss of the model as it is now, once for each step; changes nothing in it."""
        store, world = self.setup.heldout, self.world
        if store is None or world.on_first(lambda: self.folder.has_evaluation(step, "heldout", store.fingerprint)):
            return
        started = time.perf_counter()
        budget, device = self.setup.plan.max_tokens_per_device, world.device
        with torch.autocast(device.type, autocast) if autocast else contextlib.nullcontext():
            sums = heldout_losses(model, store, budget, world.rank, world.size, device, world.sum)
        scores = heldout_scores(store, sums)
        result = self._result(step, str(self.folder.path), store.fingerprint, time.perf_counter() - started, scores)
        items = heldout_items(store, sums)
        world.on_first(lambda: self.folder.write_evaluation(step, "heldout", result, items))
        self.observer.evaluated(step, scores)

    def questions(self, step: int) -> None:
        """The recipe's question files under the model on disk, by rank 0, once for each step."""
        files = [Path(name) for name in self.recipe.eval_questions]
        if not files:
            return

        def score() -> list[dict[str, Any]]:
            digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
            if self.folder.has_evaluation(step, "questions", digest):
                return []
            model = self._model(step)
            found = evaluate_questions(model, files, progress=self._progress(step))
            result = self._result(step, str(model), digest, found.seconds, found.scores)
            self.folder.write_evaluation(step, "questions", result | {"excluded": found.excluded}, found.items)
            self._remark([], found.excluded)
            return found.scores

        if scores := self._patiently(score):
            self.observer.evaluated(step, scores)

    def tasks(self, step: int) -> None:
        """Score the checkpoint of ``step`` (0: the base model) by the recipe's tasks, here or in the second process."""
        if self.suite is not None:
            scores = self._patiently(lambda: self._enqueue(step) if self._second is not None else self._score(step))
            if scores:
                self.observer.evaluated(step, scores)

    def poll(self) -> None:
        """Take what the second process has finished; rank 0 only, no words to other ranks."""
        if self._second is None or (done := self._second.poll()) is None:
            return
        step, cause = done
        if cause:
            self._note_failure(step, cause)
        else:
            self.failed.pop(step, None)
            found = read_tasks(self.folder.path, self._data)[step]
            self._remark(found["notes"], found["excluded"])
            self.observer.evaluated(step, found["scores"])

    def in_use(self) -> list[int]:
        """Steps whose checkpoints must stay until they are scored; rank 0 only."""
        return self._second.steps if self._second is not None else []

    def finish(self) -> str:
        """Wait for the second process; what failed, in one sentence, empty if nothing did."""

        def wait() -> str:
            while self.in_use():
                self.poll()
                time.sleep(POLL)
            causes = "; ".join(f"step {step}: {cause}" for step, cause in sorted(self.failed.items()))
            count = f"{len(self.failed)} evaluation{'s' if len(self.failed) > 1 else ''}"
            return f"{count} failed ({causes}); {self._cure()}" if causes else ""

        return str(self._patiently(wait)) if self.suite is not None else ""

    def close(self) -> None:
        """End the second process, if it works."""
        if self._second is not None:
            self._second.close()

    def _score(self, step: int) -> list[dict[str, Any]]:
        """Score in this process, unless it is done already; on rank 0."""
        assert self.suite is not None
        if step in read_tasks(self.folder.path, self._data):
            return []
        begun = has_begun(self.folder.path)
        try:
            with undisturbed(), without_vllm():
                model, progress = self._model(step), self._progress(step)
                found = score_step(self.folder.path, step, model, self.suite, self._data, progress)
        except (StorageError, StoppedByRequest):
            raise
        except Exception as error:  # whatever a task or the library behind it raises must not cost the training
            if not begun:
                raise
            self._note_failure(step, str(error) or type(error).__name__)
            return []
        self.failed.pop(step, None)
        self._remark(found.notes, found.excluded)
        return found.scores

    def _enqueue(self, step: int) -> None:
        """Leave a checkpoint to the second process; waits while too many are waiting."""
        assert self._second is not None
        if step in read_tasks(self.folder.path, self._data) or step in self._second.steps:
            return
        self._second.add(Job(step, self._model(step)))
        while len([waiting for waiting in self._second.steps if waiting]) > QUEUE:
            self.poll()
            time.sleep(POLL)

    def _unscored(self) -> list[int]:
        """Evaluation points whose model is on disk and whose scores are not."""
        folders = storage.published(self.folder.path, PREFIX)
        steps = [0, *(int(folder.name.removeprefix(PREFIX)) for folder in folders)]
        scored = read_tasks(self.folder.path, self._data)
        return [step for step in steps if step not in scored and self.is_due(step)]

    def _note_failure(self, step: int, cause: str) -> None:
        self.failed[step] = " ".join(cause.split())
        self.observer.message(
            f"evaluation at step {step} failed: {self.failed[step]}; training goes on, {self._cure()}"
        )
        self.folder.status(evaluations_failed={str(step): text for step, text in sorted(self.failed.items())})

    def _remark(self, notes: list[str], excluded: list[dict[str, Any]]) -> None:
        """What a reader of the scores must know, each sentence once in a session: it is the same at every step."""
        counts = Counter((row["task"], row["reason"]) for row in excluded)
        left_out = [
            f"{count:,} questions of {task} are not scored: {reason}" for (task, reason), count in counts.items()
        ]
        for text in [*notes, *left_out]:
            if text not in self._remarks:
                self._remarks.add(text)
                self.observer.message(text)

    def _cure(self) -> str:
        assert self.suite is not None
        return f"'sengi eval {self.folder.path} --tasks {','.join(self.suite.tasks)}' scores what is missing"

    def _patiently(self, work: Callable[[], Any]) -> Any:
        return on_first_patiently(self.world, work, self.folder, self.stop)

    def _model(self, step: int) -> Path:
        return self.folder.path / f"{PREFIX}{step}" if step else self.setup.model_folder

    def _progress(self, step: int) -> Callable[[int, int, str], None]:
        return lambda done, total, task: self.observer.evaluating(step, task, done, total)

    def _result(self, step: int, model: str, data: str, seconds: float, scores: list[dict[str, Any]]) -> dict[str, Any]:
        seen = self.setup.steps.samples_seen(step)
        return {"samples_seen": seen, "model": model, "data": data, "seconds": seconds, "scores": scores}
