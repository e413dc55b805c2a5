"""The Optuna storage of a study: an index of its points that dashboards read and Optuna's samplers learn from.

The run folders are the truth. Whatever the database lacks is put back from them when the study is opened, so that it
may be lost or moved at any time; while a study works, a database that fails is a note and not an end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sengi import storage
from sengi.errors import InputError
from sengi.study.dimensions import Bundles, Range
from sengi.study.study_file import StudyFile

if TYPE_CHECKING:
    import optuna

FILE = "study.db"
Ending = Literal["complete", "pruned", "fail"]
BROKEN = ("not a database", "malformed")  # what SQLite says of a file that it cannot read any more
PATIENCE = 60  # seconds a writer waits for another one of the same SQLite file


@dataclass(frozen=True)
class Result:
    """How a point ended: its mean score over seeds where it has one."""

    ending: Ending
    score: float | None = None


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
        try:
            self._study = self._open(file.storage or f"sqlite:///{(folder / FILE).resolve()}", folder)
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

        Args:
            points: number -> settings, from the folders.
            results: how points ended; those without one are not ended.
        """
        states = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False):
            if not trial.state.is_finished() and trial.user_attrs.get("point") not in points:
                self._study.tell(trial.number, state=states.FAIL)  # asked for, killed before it had a folder
        for point, settings in sorted(points.items()):
            self.add(point, settings)
        for point, result in sorted(results.items()):
            self.tell(point, result)

    def add(self, point: int, settings: dict[str, Any]) -> None:
        """Note that a point runs; does nothing where that is known."""
        if point not in self._trials:
            self._add(point, {key: _to_optuna(value) for key, value in settings.items()})

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

    def ask(self, point: int) -> dict[str, Any]:
        """Settings that the sampler proposes for a new point: a function of the seed, the point and what is known."""
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(self._file.seeds[0] * 1_000_003 + point) % 2**32, constant_liar=True
        )
        trial = self._study.ask(self._distributions)
        trial.set_user_attr("point", point)
        self._trials[point] = trial.number
        return {key: _from_optuna(value) for key, value in trial.params.items()}

    def tell(self, point: int, result: Result) -> None:
        """Note how a point ended; does nothing where that is known."""
        states = self._optuna.trial.TrialState
        state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "fail": states.FAIL}[result.ending]
        trial = self._study.get_trials(deepcopy=False)[self._trials[point]]
        if trial.state == states.FAIL and state != states.FAIL:  # tried again: Optuna never reopens a trial
            self._add(point, trial.params)
        self._study.tell(self._trials[point], result.score, state=state, skip_if_finished=True)

    def _open(self, url: str, folder: Path) -> optuna.Study:
        arguments = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {"pool_pre_ping": True}
        return self._optuna.create_study(
            storage=self._optuna.storages.RDBStorage(url, engine_kwargs=arguments),
            study_name=str(folder.resolve()) if self._file.storage else "study",
            direction="minimize" if self._file.minimize else "maximize",
            load_if_exists=True,
        )

    def _start_over(self, folder: Path) -> None:
        """A SQLite file that cannot be read is kept aside; the folders make a new one."""
        storage.set_aside(folder / FILE)
        self._study = self._open(f"sqlite:///{(folder / FILE).resolve()}", folder)
        self._trials = {}

    def _distribution(self, values: list[Any] | Range | Bundles) -> optuna.distributions.BaseDistribution:
        kinds = self._optuna.distributions
        if not isinstance(values, Range):
            return kinds.CategoricalDistribution([_to_optuna(value) for value in values])
        if isinstance(values.low, int) and isinstance(values.high, int):
            return kinds.IntDistribution(values.low, values.high, log=values.log)
        return kinds.FloatDistribution(float(values.low), float(values.high), log=values.log)


def _to_optuna(value: Any) -> Any:
    """Optuna knows choices that are numbers, text, truth values or None; others go as JSON text."""
    return value if isinstance(value, bool | int | float | str | None) else f"json:{json.dumps(value)}"


def _from_optuna(value: Any) -> Any:
    return json.loads(value[5:]) if isinstance(value, str) and value.startswith("json:") else value


def _first_line(error: Exception) -> str:
    return " ".join((str(error).splitlines() or [""])[0].split()) or type(error).__name__
