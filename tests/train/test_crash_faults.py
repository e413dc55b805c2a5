"""A kill, a full disk, an I/O error or a short write at every single storage call of a session of training.

The session (crash_faults.make_base) uses every verb of the storage module: it sweeps left-overs, sets a corrupt
checkpoint aside, cuts a torn log line, rewrites the log, appends, saves, removes the old checkpoint, writes
status and held-out scores. Each case has its own copy of the folder; the next start must finish bit-equal.
"""

from __future__ import annotations

import pytest
from crash_harness import ask

CALLS = 100  # storage calls that a session has at least; less would mean that the harness lost some


@pytest.mark.parametrize("part", [1, 2, 3])
@pytest.mark.parametrize("mode", ["kill", "enospc", "eio"])
def test_fault_at_every_call(mode: str, part: int) -> None:
    result = ask("faults", modes=[mode], part=part, parts=3)
    print(result)
    assert result["problems"] == []
    assert result["calls"] >= CALLS
    assert result["cases"][mode] == len(range(part, result["calls"] + 1, 3))


# The kernel may write less than it was asked to; that is no error and changes nothing.
def test_short_write_at_every_write() -> None:
    result = ask("faults", modes=["short"], part=1, parts=1)
    print(result)
    assert result["problems"] == []
    assert result["cases"]["short"] >= CALLS // 4


# From call N on nothing can be written, renamed or removed any more, cleaning up included.
def test_disk_turns_read_only() -> None:
    result = ask("faults", modes=["erofs"], part=1, parts=4)
    print(result)
    assert result["problems"] == []
    assert result["cases"]["erofs"] >= CALLS // 4
