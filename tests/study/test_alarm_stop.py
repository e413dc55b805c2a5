"""A run of a study that an alarm stopped: recorded with that cause, not tried again."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sengi.study.scheduler import run_study
from sengi.study.study_file import read_study
from sengi.train.alarms import Alarm

sys.path.append(str(Path(__file__).parent))
from fake_runs import FakeExecutor, Listener, write_study

ALARM = Alarm(30, "diverging", "the loss is 9 and was 2", "the rate is too high", "lower it")


class AlarmedExecutor(FakeExecutor):
    """As training ends a run whose recipe says ``on_alarm: stop``."""

    def ended(self) -> dict[str, Any]:
        done = super().ended()
        for name, ended in done.items():
            status = Path(self.folder) / "runs" / name / "status.json"
            if ended.code == 1:
                status.write_text(
                    json.dumps({"state": "stopped", "reason": "stopped by an alarm", "alarm": asdict(ALARM)})
                )
                done[name] = type(ended)(3, "stopped by an alarm")
        return done


def test_a_run_stopped_by_an_alarm_is_recorded_with_its_cause(tmp_path: Path) -> None:
    path, listener = write_study(tmp_path, early_termination={"mode": "off"}), Listener()
    executor = AlarmedExecutor(broken=(1e-3,))
    executor.folder = tmp_path / "study"
    rows = run_study(read_study(path), listener, make_executor=lambda asked: executor)
    states = {row["name"]: row["state"] for row in rows}
    assert states == {"001-s42": "finished", "002-s42": "stopped", "003-s42": "finished"}
    assert rows[1]["reason"] == ALARM.sentence
    assert listener.said == [f"run 002-s42 stopped by an alarm: {ALARM.sentence}"]
    # it stays stopped, also where the study died before it could note how the run ended
    (tmp_path / "study/runs/002-s42/outcome.json").unlink()
    again = FakeExecutor()
    second = run_study(read_study(path), make_executor=lambda asked: again)
    assert again.started == []
    assert {row["name"]: row["state"] for row in second} == states
    assert second[1]["reason"] == ALARM.sentence
