"""The record of verdicts: verdicts.jsonl of a study, one line each time the judge says something new of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from sengi import storage
from sengi.study.judge import CONDEMNED, Verdict, excess

FILE = "verdicts.jsonl"


class Word(NamedTuple):
    """What the judge said of a run at a check, and how far beyond chance the run was, in margins."""

    check: int
    state: str
    reason: str
    excess: float = 0.0


def last_words(lines: Iterable[Mapping[str, Any]]) -> dict[str, Word]:
    """The judge's word on each run: the one that condemned it, else that of its latest check.

    A word on an early check may be younger than one on a late check: a slower run got there.

    Args:
        lines: of verdicts.jsonl, in order.
    """
    return {run: _last(words) for run, words in _by_check(lines).items()}


def _by_check(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, Word]]:
    runs: dict[str, dict[int, Word]] = {}
    for line in lines:
        runs.setdefault(line["run"], {})[line["check"]] = _word(line)
    return runs


def _word(line: Mapping[str, Any]) -> Word:
    return Word(line["check"], line["state"], line["reason"], excess(line))


def _last(words: Mapping[int, Word]) -> Word:
    checks = sorted(words)
    return next((words[check] for check in checks if words[check].state in CONDEMNED), words[checks[-1]])


class VerdictLog:
    """Appends what is new.

    A verdict on the same run at the same check is new when its state changed: another run reached that check since.
    What came too late stays late, also for a run that went back to its checkpoint. Of a run that was continued after
    its condemnation nothing is new any more: it goes on to its end.

    Args:
        folder: the study folder.

    Attributes:
        newest: the last word on each run.
    """

    def __init__(self, folder: Path) -> None:
        self._words = _by_check(storage.read_lines(folder / FILE))
        self.newest = {run: _last(words) for run, words in self._words.items()}
        self._log = storage.AppendLog(folder / FILE)

    def add(self, verdicts: list[Verdict]) -> list[Verdict]:
        """Write the new ones down; returns them."""
        new = [verdict for verdict in verdicts if not self._knows(verdict)]
        for verdict in new:
            line = _finite(asdict(verdict))
            self._log.append(line)
            words = self._words.setdefault(verdict.run, {})
            words[verdict.check] = _word(line)
            self.newest[verdict.run] = _last(words)
        return new

    def _knows(self, verdict: Verdict) -> bool:
        newest = self.newest.get(verdict.run)
        if newest is not None and newest.state == "continued":
            return True
        known = self._words.get(verdict.run, {}).get(verdict.check)
        return known is not None and (known.state == verdict.state or (known.state, verdict.state) == ("late", "stop"))

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN and no infinity: null."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
