"""The record of verdicts: verdicts.jsonl of a study, one line each time the judge says something new of a run."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sengi import storage
from sengi.study.judge import Verdict

FILE = "verdicts.jsonl"


class VerdictLog:
    """Appends what is new.

    A verdict on the same run at the same check is new when its state changed: another run reached that check since.

    Args:
        folder: the study folder.

    Attributes:
        newest: the last word on each run: name -> (state, reason).
    """

    def __init__(self, folder: Path) -> None:
        lines = storage.read_lines(folder / FILE)
        self._known = {(line["run"], line["check"]): line["state"] for line in lines}
        self.newest: dict[str, tuple[str, str]] = {line["run"]: (line["state"], line["reason"]) for line in lines}
        self._log = storage.AppendLog(folder / FILE)

    def add(self, verdicts: list[Verdict]) -> list[Verdict]:
        """Write the new ones down; returns them."""
        new = [verdict for verdict in verdicts if self._known.get((verdict.run, verdict.check)) != verdict.state]
        for verdict in new:
            self._log.append(_finite(asdict(verdict)))
            self._known[verdict.run, verdict.check] = verdict.state
            self.newest[verdict.run] = verdict.state, verdict.reason
        return new

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN and no infinity: null."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
