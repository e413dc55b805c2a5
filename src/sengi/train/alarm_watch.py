"""Alarms of a run while it goes: told at once, and with ``on_alarm: stop`` the run saves its state and ends.

What an alarm is stands in alarms.py. Nothing here reaches the training: weights are the same with and without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sengi import storage
from sengi.errors import NonFiniteError, StoppedByAlarm
from sengi.train.alarms import Alarm, Watch
from sengi.train.distributed import World
from sengi.train.observer import Observer
from sengi.train.run_folder import RunFolder

TOLD = 3  # earlier alarms that a continued run repeats


class AlarmWatch:
    """Follows the step records of a run on rank 0; the other ranks learn that it stops.

    Args:
        planned_steps: of the whole run.
        on_alarm: the recipe's.
        world: the processes of the run.
        folder: whose dynamics.jsonl says what came before.
        observer: told of alarms.
    """

    def __init__(self, planned_steps: int, on_alarm: str, world: World, folder: RunFolder, observer: Observer) -> None:
        self._watch = Watch(planned_steps)
        self._stops, self._world, self._folder, self._observer = on_alarm == "stop", world, folder, observer
        self._raised: list[Alarm] = []  # at the last step

    def restore(self) -> None:
        """See the steps that were done before; their alarms are known, and stop nothing again."""
        if not self._world.first:
            return
        records = storage.read_lines(self._folder.path / "dynamics.jsonl")
        known = [alarm for record in records for alarm in self._watch.add(record)]
        for alarm in known[-TOLD:]:
            self._observer.message(f"an earlier alarm of this run: {alarm.sentence}")

    def step(self, record: dict[str, Any]) -> None:
        """A step was logged; called on rank 0."""
        self._raised = self._watch.add(record)
        for alarm in self._raised:
            self._observer.alarm(alarm)

    def stop_if_due(self, save: Callable[[], None]) -> None:
        """End the run, where its last step raised an alarm and the recipe says so; all ranks call this together.

        Args:
            save: sees that the state of now is safe on disk.

        Raises:
            StoppedByAlarm: after saving.
        """
        if not self._stops or not self._world.any(bool(self._raised)):
            return
        save()
        if not self._raised:
            error = StoppedByAlarm("stopped by an alarm on rank 0")
            error.elsewhere = True
            raise error
        error = StoppedByAlarm(
            f"stopped by an alarm, state saved: {self._raised[0].sentence}; to go on all the same, run the same "
            "command again, which does not stop for this alarm twice"
        )
        error.alarm = asdict(self._raised[0])
        raise error


def non_finite_error(step: int, error: NonFiniteError, saved_step: int, places: list[str], run: Path) -> NonFiniteError:
    """What ends a run whose loss or gradient norm is not finite: the error, with the alarm that a report shows.

    Args:
        step: that was given up; ``error`` says what is not finite.
        saved_step: the step before it, whose state is saved; 0 without one.
        places: of some of its samples.
        run: the run folder.
    """
    saved = f"step {saved_step} is saved" if saved_step else "nothing was trained yet"
    alarm = Alarm(
        step,
        "not finite",
        str(error),
        f"no update was made and {saved}",
        f"look at its samples ({', '.join(places)}, ...; all by 'sengi data ledger {run} --step {step}'), or lower "
        "learning_rate in another output_dir",
    )
    found = NonFiniteError(f"step {step}: {alarm.seen}; {alarm.cause}; {alarm.cure}")
    found.alarm = asdict(alarm)
    return found
