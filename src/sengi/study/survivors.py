"""Who is continued after all: failures may take the runs for whose sake the judge stopped others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sengi.study.judge import Verdict
from sengi.study.verdicts import Word
from sengi.study.watched import Watched


def to_continue(runs: Sequence[Watched], words: Mapping[str, Word], least: int, to_come: int = 0) -> list[Verdict]:
    """Condemned runs that must go on, because fewer than ``least`` others finished or still can.

    The least bad come first: who was condemned last, then who was least beyond chance.

    Args:
        runs: of the study.
        words: the judge's last word on each, by name.
        least: runs that must be left (``min_survivors``).
        to_come: runs that the search has not asked for yet; they can still finish.

    Returns:
        Their new verdicts, at the checks that condemned them.
    """
    left = to_come + sum(run.state in ("waiting", "running", "finished") for run in runs)
    condemned = [(run.stopped_at, run) for run in runs if run.state == "stopped" and run.stopped_at is not None]

    def badness(entry: tuple[int, Watched]) -> tuple[int, float, str]:
        check, run = entry
        return -check, words[run.run.name].excess if run.run.name in words else 0.0, run.run.name

    why = f"continued from its checkpoint: {left} of the others finished or still can, and min_survivors is {least}"
    return [
        Verdict(run.run.name, check, "continued", f"{why}; it was {run.reason}")
        for check, run in sorted(condemned, key=badness)[: max(0, least - left)]
    ]
