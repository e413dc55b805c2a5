"""One study, from its file to its summary: start runs, watch them, stop the condemned, go on after any death.

Everything that matters is in the run folders. The scheduler may be killed at any moment: its trainings die with it,
and the next call finds finished runs finished, stopped runs stopped, and continues the others where they were.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sengi import storage
from sengi.errors import InputError, RecipeError, SengiError, StoppedByRequest
from sengi.recipe_sources import read_yaml
from sengi.study.database import Database, Result
from sengi.study.executor import executor_for
from sengi.study.judge import CONDEMNED, judge, without_hindsight
from sengi.study.lease import holder
from sengi.study.run_executor import RunExecutor
from sengi.study.space import SETTINGS, grid, known_points, runs_of
from sengi.study.study_file import Executor, StudyRequest
from sengi.study.survivors import to_continue
from sengi.study.verdicts import VerdictLog
from sengi.study.watched import State, Watched
from sengi.train.stopping import StopRequest

POLL = 0.5  # seconds between looks at the runs
DRAWS = 50  # of a point of a search, until its settings make a valid recipe
REQUEST, SUMMARY, STOP = "request.json", "study.json", "stop.json"
Rows = list[dict[str, Any]]


class StudyObserver:
    """Events of a study; this base class ignores them."""

    def message(self, text: str) -> None:
        """A sentence that people should see."""

    def rows(self, rows: Rows) -> None:
        """The table, whenever something in it changed."""


def run_study(
    request: StudyRequest,
    observer: StudyObserver | None = None,
    make_executor: Callable[[Executor], RunExecutor] = executor_for,
) -> Rows:
    """Start a study, or continue it where it was left.

    Args:
        request: the study file (:func:`sengi.study.study_file.read_study`).
        observer: told of everything that happens.
        make_executor: makes what trains the runs.

    Returns:
        The rows of study.json.

    Raises:
        InputError: the folder holds another study or another process works on it, or the database cannot be reached.
        StoppedByRequest: a signal or ``sengi study stop``; every run saved its state, the same call continues.
    """
    folder = request.folder
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        executor = make_executor(request.file.executor)
        check_same_study(folder, request)
        storage.create_folder(folder)
        stack.enter_context(storage.lock(folder))
        (folder / STOP).unlink(missing_ok=True)  # of an earlier session; who asks from here on means this one
        storage.sweep(folder)
        check_same_study(folder, request)
        database = Database(request.file, folder)
        log = VerdictLog(folder)
        stack.callback(log.close)
        scheduler = Scheduler(request, observer or StudyObserver(), executor, database, log, stop)
        storage.write_file(folder / REQUEST, request.to_json())  # a study that cannot begin binds its folder to nothing
        stop.patient = True
        return scheduler.run()


def check_same_study(folder: Path, request: StudyRequest) -> None:
    """Compare with the study that ``folder`` was begun with, if there is one.

    Raises:
        InputError: it holds another study, or a run.
    """
    if (folder / "dynamics.jsonl").exists():
        raise InputError(f"{folder}: holds a single run, not a study; choose another output_dir")
    if not (folder / REQUEST).exists():
        return
    values, _ = read_yaml(folder / REQUEST)
    now = json.loads(request.to_json())
    keys = [key for key in request.identity() if values.get(key) != now[key]]
    if keys:
        raise InputError(
            f"{folder}: holds another study ({', '.join(keys)} differ from its {REQUEST}); restore them to continue "
            "it, or choose another output_dir"
        )


class Scheduler:
    """The loop over the runs of one study.

    Attributes:
        runs: all runs so far, by name, in order.
    """

    def __init__(
        self,
        request: StudyRequest,
        observer: StudyObserver,
        executor: RunExecutor,
        database: Database,
        log: VerdictLog,
        stop: StopRequest,
    ) -> None:
        self.request, self.file, self.folder = request, request.file, request.folder
        self.observer, self.executor, self.database, self.log, self.stop = observer, executor, database, log, stop
        self.settings = request.file.judge_settings()
        self.runs: dict[str, Watched] = {}
        self._shown: Rows = []
        self._saving = False  # all trainings were asked to save
        self._reached: dict[str, tuple[State, int]] = {}  # run -> state, checks
        points = known_points(self.folder, self.file.space)
        if not self.file.searched:
            points = dict(enumerate(grid(self.file), start=1))
        for point, settings in sorted(points.items()):
            self._add_point(point, settings)
        begun = {watched.run.point for watched in self.runs.values() if watched.run.request.exists()}
        self._index(
            lambda: database.sync(
                {point: points[point] for point in begun}, {p: r for p in begun if (r := self._result(p))}
            )
        )

    def run(self) -> Rows:
        """Work until every run ended. Whatever ends it before, all trainings save their state first: they would die
        with this process and lose what they did since their last checkpoint.

        Raises:
            StoppedByRequest: asked to stop.
            SengiError: the database failed where the next point depends on it, no valid point was found, or the
                objective is no score of the runs.
        """
        try:
            return self._work()
        except SengiError:
            if not self._saving:
                self._save_all()
            raise

    def _work(self) -> Rows:
        while True:
            self._judge()
            for watched in self.runs.values():
                watched.check_objective()
            self._collect()
            self._keep_survivors()
            if not self._asked_to_stop():
                self._start()
            self._publish("running")
            if all(watched.ended for watched in self.runs.values()) and not self._next_point():
                break
            if self._asked_to_stop():
                self._stop_all()
            time.sleep(POLL)
        self._publish("finished")
        return self._shown

    def _asked_to_stop(self) -> bool:
        return (
            self._saving or bool(self.stop.reason) or any((place / STOP).exists() for place in self.request.stop_places)
        )

    def _add_point(self, point: int, settings: dict[str, Any]) -> None:
        runs = runs_of(self.file, point, settings, self.folder)
        recipes = [self.request.run_values(settings, run.seed, run.folder) for run in runs]  # first: one may be refused
        for run, recipe in zip(runs, recipes, strict=True):
            watched = self.runs[run.name] = Watched(run, recipe, self.file.objective)
            word = self.log.newest.get(run.name)
            may_stop = self.settings is not None and self.settings.mode == "terminate"
            if may_stop and watched.state == "waiting" and word is not None and word.state == "stop":
                watched.condemn(word.check, word.reason)  # the study died, or its training, before it had ended
            elif watched.stopped_at is not None and word is not None and word.state == "continued":
                watched.go_on()  # the study died between the word and the deed

    @property
    def _asked_for(self) -> int:
        """Points so far."""
        return max((watched.run.point for watched in self.runs.values()), default=0)

    @property
    def _to_come(self) -> int:
        """Points that the sampler is still to be asked for."""
        return max(0, (self.file.num_trials or 0) - self._asked_for) if self.file.searched else 0

    def _next_point(self) -> bool:
        """Ask the sampler for another point, where there is one to ask for."""
        if not self._to_come:
            return False
        number, refusal = self._asked_for + 1, ""
        for draw in range(DRAWS):
            settings = self._ask(number, draw)
            try:
                self._add_point(number, settings)
            except RecipeError as error:
                refusal = str(error)
                self._index(lambda: self.database.tell(number, Result("fail")))
                continue
            if refusal:
                self.observer.message(f"point {number} was drawn {draw + 1} times; refused last: {refusal}")
            return True
        raise RecipeError(
            f"space: none of {DRAWS} draws for point {number} makes a valid recipe, the last one because of {refusal}; "
            "begin a study without such combinations in another output_dir"
        )

    def _ask(self, number: int, draw: int) -> dict[str, Any]:
        try:
            return self.database.ask(number, draw)
        except Exception as error:  # every driver has its own
            raise SengiError(
                f"storage: the database failed when it was asked for point {number} ({type(error).__name__}); mend it "
                "and run the same command again: every run continues"
            ) from error

    def _start(self) -> None:
        """Fill the executor with runs, in order; of those that begin at once, one builds the token store of all."""
        self._note_holders([w for w in self.runs.values() if w.state == "waiting" and w.reason])
        while self.executor.free > 0:
            waiting = [w for w in self.runs.values() if w.state == "waiting"]
            self._note_holders(waiting)
            if ready := [w for w in waiting if not w.reason]:
                self._begin(ready[0])
            elif waiting or not self._next_point():
                return  # somebody else trains it: look again later

    def _note_holders(self, waiting: list[Watched]) -> None:
        """Say of runs that wait who else trains them."""
        for watched in waiting:
            before, watched.reason = watched.reason, holder(watched.run)
            if watched.reason and not before:
                self.observer.message(f"run {watched.run.name} waits: {watched.reason}")

    def _begin(self, watched: Watched) -> None:
        run = watched.run
        storage.create_folder(run.folder)
        storage.write_json(run.folder / SETTINGS, run.settings)
        storage.write_json(run.request, watched.recipe)
        self._index(lambda: self.database.add(run.point, run.settings))
        watched.begin()
        self.executor.start(run)

    def _collect(self) -> None:
        """Note which trainings ended and how."""
        for name, ended in self.executor.ended().items():
            watched = self.runs[name]
            watched.end(ended.code, ended.cause, self._asked_to_stop())
            if watched.state == "failed":
                self.observer.message(f"run {name} failed: {watched.reason}")
            elif watched.state == "stopped" and watched.stopped_at is None:
                self.observer.message(f"run {name} stopped by an alarm: {watched.reason}")
            point = watched.run.point
            if result := self._result(point):
                self._index(lambda point=point, result=result: self.database.tell(point, result))  # type: ignore[misc]

    def _result(self, point: int) -> Result | None:
        """How a point ended, once all its runs did: the mean over the seeds that finished; without a score where a run
        was lost, since the seed that survived would teach the sampler that these settings are good."""
        runs = [watched for watched in self.runs.values() if watched.run.point == point]
        if not all(watched.ended for watched in runs):
            return None
        scores = [watched.score.value for watched in runs if watched.score is not None]
        if scores and not any(watched.lost for watched in runs):
            return Result("complete", sum(scores) / len(scores))
        return Result("pruned" if any(watched.state == "stopped" for watched in runs) else "fail")

    def _judge(self) -> None:
        """Hear the judge where a run began or reached another check, and stop whom it condemned."""
        if self.settings is None:
            return
        every, last = self.settings.check_samples, self.settings.early_samples
        seen = {name: watched.samples_seen for name, watched in self.runs.items()}
        reached = {n: (self.runs[n].state, min(samples, last) // every) for n, samples in seen.items() if samples}
        if reached == self._reached:  # verdicts at a check know nothing after it, and a poll must cost little
            return
        self._reached = reached
        verdicts = judge([watched.history() for watched in self.runs.values() if not watched.lost], self.settings)
        running = {name: watched for name, watched in self.runs.items() if watched.state == "running"}
        before = {name: watched.heard for name, watched in running.items()}
        told = {name for name, word in self.log.newest.items() if word.state in CONDEMNED}
        said = without_hindsight([v for v in verdicts if v.run in running], before, seen, self.settings)
        for verdict in self.log.add(said):
            if verdict.state in CONDEMNED and verdict.run not in told:
                told.add(verdict.run)
                self.observer.message(f"run {verdict.run}: {verdict.reason}")
        for name, watched in running.items():
            watched.heard = seen[name]
            word = self.log.newest.get(name)
            if self.settings.mode == "terminate" and word is not None and word.state == "stop":
                watched.state, watched.reason, watched.stopped_at = "stopping", word.reason, word.check
                self.executor.stop(watched.run)

    def _keep_survivors(self) -> None:
        """Continue condemned runs where failures left fewer others than must be left."""
        least, to_come = self.file.early_termination.min_survivors, self._to_come * len(self.file.seeds)
        for verdict in self.log.add(to_continue(list(self.runs.values()), self.log.newest, least, to_come)):
            self.runs[verdict.run].go_on()
            self.observer.message(f"run {verdict.run}: {verdict.reason}")

    def _save_all(self) -> None:
        """Ask every training to save, and wait for them."""
        self._saving = True
        for watched in self.runs.values():
            self.executor.stop(watched.run)
        while any(watched.state in ("running", "stopping") for watched in self.runs.values()):
            self._collect()
            time.sleep(POLL)
        self._publish("stopped")

    def _stop_all(self) -> None:
        """End the session as asked, with all trainings saved."""
        reason = self.stop.reason or "'sengi study stop'"
        self._save_all()
        (self.folder / STOP).unlink(missing_ok=True)
        raise StoppedByRequest(
            f"study stopped by {reason}, every run saved its state; run the same command to continue"
        )

    def _publish(self, state: str) -> None:
        """Write study.json and show the table, where something changed."""
        rows = [watched.row(self.log.newest.get(name)) for name, watched in self.runs.items()]
        if rows == self._shown and state == "running":
            return
        self._shown = rows
        facts = {
            "state": state,
            "objective": self.file.objective,
            "minimize": self.file.minimize,
            "budget_samples": self.file.budget_samples,
            "updated": time.time(),
            "runs": rows,
        }
        storage.write_json(self.folder / SUMMARY, facts)
        self.observer.rows(rows)

    def _index(self, work: Callable[[], None]) -> None:
        """Tell the database; it is an index, and its failure must not cost the study."""
        try:
            work()
        except SengiError:
            raise
        except Exception as error:  # every driver has its own
            self.observer.message(
                f"the database failed ({type(error).__name__}); the next start mends it from the folders"
            )
