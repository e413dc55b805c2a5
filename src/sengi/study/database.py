"""The Optuna storage of a study: an index of its points that dashboards read and Optuna's samplers learn from.

The run folders are the truth. What the database lacks, or has otherwise, is put right from them when the study is
opened, so that it may be lost or moved at any time; while a study works, a database that fails is a note and not an
end.
"""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sengi import storage
from sengi.errors import InputError
from sengi.study.dimensions import Bundles, Range
from sengi.study.recording import read_mapping
from sengi.study.study_file import StudyFile

if TYPE_CHECKING:
    import optuna

FILE = "study.db"
ID = "study-id.json"  # in the study folder: what tells it from other folders of the same path
Ending = Literal["complete", "pruned", "fail"]
BROKEN = ("not a database", "malformed")  # what SQLite says of a file that it cannot read any more
SAME = 1e-9  # relative difference of two scores that are one: a database may keep fewer digits
PATIENCE = 60  # seconds a writer waits for another one of the same SQLite file


@dataclass(frozen=True)
class Result:
    """How a point ended: its mean score over seeds where it has one."""

    ending: Ending
    score: float | None = None


def shared_name(folder: Path) -> str:
    """The name of a study in a database that several machines share: the path of its folder, and an id.

    The id is born with the folder and goes with it. The path alone may be another folder's, on another machine or of a
    study that was deleted, and two studies of one name would learn from each other's points.
    """
    known = read_mapping(folder / ID).get("id")
    if not known:
        known = secrets.token_hex(8)
        storage.write_json(folder / ID, {"id": known})
    return f"{folder.resolve()} {known}"


class Database:
    """An Optuna study whose trials are the points of ours.

    Args:
        file: the study file.
        folder: the study folder.

    Raises:
        InputError: Optuna is not installed, or the database cannot be reached.
    """

    def __init__(self, file: StudyFile, folder: Path) -> None:
        try:
            import optuna
        except ImportError:
            raise InputError("studies need Optuna; install it by: pip install 'sengi[study]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._file = optuna, file
        self._distributions = {key: self._distribution(values) for key, values in file.space.items()}
        self._url = file.storage or f"sqlite:///{(folder / FILE).resolve()}"
        self._name = shared_name(folder) if file.storage else "study"
        try:
            self._study = self._open()
            self._trials = {
                int(trial.user_attrs["point"]): trial.number
                for trial in self._study.get_trials(deepcopy=False)
                if "point" in trial.user_attrs
            }
        except Exception as error:  # SQLAlchemy and every database driver have their own
            if file.storage is None and any(word in str(error) for word in BROKEN):
                self._start_over(folder)
                return
            raise InputError(
                f"storage: the database {file.storage or FILE} cannot be used ({_first_line(error)}); check its "
                "address and that its driver is installed (pip install 'sengi[postgresql]'); the runs are not affected"
            ) from None

    def sync(self, points: dict[int, dict[str, Any]], results: dict[int, Result]) -> None:
        """Put back what the database lacks of the points whose folders are there, and close trials that have none.

        Where a trial says something else than the folders, all are made again: Optuna never changes one that ended.

        Args:
            points: number -> settings, from the folders.
            results: how points ended; those without one are not ended.
        """
        states = self._optuna.trial.TrialState
        if any(self._contradicts(trial, points, results) for trial in self._study.get_trials(deepcopy=False)):
            self._optuna.delete_study(study_name=self._name, storage=self._storage())
            self._study, self._trials = self._open(), {}
        for trial in self._study.get_trials(deepcopy=False):
            if not trial.state.is_finished() and trial.user_attrs.get("point") not in points:
                self._study.tell(trial.number, state=states.FAIL)  # asked for, killed before it had a folder
        for point, settings in sorted(points.items()):
            self.add(point, settings)
        for point, result in sorted(results.items()):
            self.tell(point, result)

    def _contradicts(
        self, trial: optuna.trial.FrozenTrial, points: dict[int, dict[str, Any]], results: dict[int, Result]
    ) -> bool:
        """Whether a trial is not what the folders say; those that failed teach the sampler nothing and may stay."""
        states = self._optuna.trial.TrialState
        if trial.state not in (states.COMPLETE, states.PRUNED, states.RUNNING):
            return False
        point = int(trial.user_attrs.get("point", 0))
        running = trial.state == states.RUNNING
        if point not in points:
            return not running  # asked for, killed before it had a folder
        if self._trials[point] != trial.number or trial.params != _parameters(points[point]):
            return True
        result = results.get(point)
        if running or result is None:
            return not running
        same = result.score is None or math.isclose(result.score, trial.value or 0.0, rel_tol=SAME)
        return self._state(result) != trial.state or not same

    def _state(self, result: Result) -> optuna.trial.TrialState:
        states = self._optuna.trial.TrialState
        return {"complete": states.COMPLETE, "pruned": states.PRUNED, "fail": states.FAIL}[result.ending]

    def add(self, point: int, settings: dict[str, Any]) -> None:
        """Note that a point runs; does nothing where that is known."""
        if point not in self._trials:
            self._add(point, _parameters(settings))

    def _add(self, point: int, parameters: dict[str, Any]) -> None:
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=self._optuna.trial.TrialState.RUNNING,
                params=parameters,
                distributions=self._distributions,
                user_attrs={"point": point},
            )
        )
        self._trials[point] = self._study.get_trials(deepcopy=False)[-1].number

    def ask(self, point: int, draw: int = 0) -> dict[str, Any]:
        """Settings that the sampler proposes for a new point: a function of the seed, the point, how often it was drawn
        before, and what is known."""
        seed = self._file.seeds[0] * 1_000_003 + point + draw * 1_000_000_007
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed % 2**32, constant_liar=True)
        trial = self._study.ask(self._distributions)
        trial.set_user_attr("point", point)
        self._trials[point] = trial.number
        return {key: _from_optuna(value) for key, value in trial.params.items()}

    def tell(self, point: int, result: Result) -> None:
        """Note how a point ended; does nothing where that is known."""
        state = self._state(result)
        trial = self._study.get_trials(deepcopy=False)[self._trials[point]]
        if trial.state.is_finished() and trial.state != state:  # it went on after all: Optuna never reopens a trial
            self._add(point, trial.params)
        self._study.tell(self._trials[point], result.score, state=state, skip_if_finished=True)

    def _storage(self) -> optuna.storages.RDBStorage:
        sqlite = self._url.startswith("sqlite")
        arguments = {"connect_args": {"timeout": PATIENCE}} if sqlite else {"pool_pre_ping": True}
        return self._optuna.storages.RDBStorage(self._url, engine_kwargs=arguments)

    def _open(self) -> optuna.Study:
        return self._optuna.create_study(
            storage=self._storage(),
            study_name=self._name,
            direction="minimize" if self._file.minimize else "maximize",
            load_if_exists=True,
        )

    def _start_over(self, folder: Path) -> None:
        """A SQLite file that cannot be read is kept aside; the folders make a new one."""
        storage.set_aside(folder / FILE)
        self._study, self._trials = self._open(), {}

    def _distribution(self, values: list[Any] | Range | Bundles) -> optuna.distributions.BaseDistribution:
        kinds = self._optuna.distributions
        if not isinstance(values, Range):
            return kinds.CategoricalDistribution([_to_optuna(value) for value in values])
        if isinstance(values.low, int) and isinstance(values.high, int):
            return kinds.IntDistribution(values.low, values.high, log=values.log)
        return kinds.FloatDistribution(float(values.low), float(values.high), log=values.log)


def _parameters(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: _to_optuna(value) for key, value in settings.items()}


def _to_optuna(value: Any) -> Any:
    """Optuna knows choices that are numbers, text, truth values or None; others go as JSON text."""
    return value if isinstance(value, bool | int | float | str | None) else f"json:{json.dumps(value)}"


def _from_optuna(value: Any) -> Any:
    return json.loads(value[5:]) if isinstance(value, str) and value.startswith("json:") else value


def _first_line(error: Exception) -> str:
    return " ".join((str(error).splitlines() or [""])[0].split()) or type(error).__name__
