"""A kill, a full disk, an I/O error or a short write at every single storage call of a session of training.

The session (crash_faults.make_base) uses every verb of the storage module: it sweeps left-overs, sets a corrupt
checkpoint aside, cuts a torn log line, rewrites the log, appends, saves, removes the old checkpoint, writes
status and held-out scores. Each case has its own copy of the folder; the next start must finish bit-equal.
Every tenth call by default, the others with ``make test-slow``.
"""

from __future__ import annotations

import pytest
from crash_harness import ask

CALLS = 100  # storage calls that a session has at least; fewer would mean that the harness lost some


def check(mode: str, part: int, parts: int) -> int:
    """Run the cases; returns their number."""
    result = ask("faults", mode=mode, part=part, parts=parts)
    print(result)
    assert result["problems"] == []
    assert result["calls"] >= CALLS
    return int(result["cases"])


PARTS = 10
SLOW = [pytest.param(part, marks=pytest.mark.slow) for part in range(2, PARTS + 1)]


@pytest.mark.parametrize("part", [1, *SLOW])
@pytest.mark.parametrize("mode", ["kill", "enospc", "eio"])
def test_fault_at_every_call(mode: str, part: int) -> None:
    assert check(mode, part, PARTS) >= CALLS // PARTS


# The kernel may write less than it was asked to; that is no error and changes nothing.
def test_short_write_at_every_write() -> None:
    assert check("short", 1, 1) >= 20


# The same while training goes on beside the thread that writes: checkpoints 1 and 2 of a run of 3 steps. Kills at such
# moments are those of test_crash_kills.py.
@pytest.mark.parametrize(("mode", "first"), [("enospc", 24), ("eio", 36)])
def test_fault_while_a_checkpoint_is_written_in_the_background(mode: str, first: int) -> None:
    result = ask("background_faults", mode=mode, first=first, stride=24)
    print(result)
    assert result["problems"] == []
    assert result["cases"] >= 7
    assert result["while_training"] >= 3


# From call N on nothing can be written, renamed or removed any more, cleaning up included.
@pytest.mark.parametrize("part", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_disk_turns_read_only(part: int) -> None:
    assert check("erofs", part, 8) >= CALLS // 8
