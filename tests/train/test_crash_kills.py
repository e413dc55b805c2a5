"""1,000 times kill -9 of a run that saves at every step, at random moments; each run ends bit-equal.

An eighth of them by default, the others with ``make test-slow``.
"""

from __future__ import annotations

import pytest
from crash_harness import ask, seeded

PARTS, KILLS, IN_SAVE = 8, 125, 38  # 1,000 kills, at least 304 of them inside a save


# After each kill: the newest checkpoint that verifies is at least the last acknowledged step. At the end of each
# run: dynamics, samples, scores, weights, moments and manifest are byte for byte those of a run that never died.
@pytest.mark.parametrize(
    "part", [part if part < PARTS // 8 else pytest.param(part, marks=pytest.mark.slow) for part in range(PARTS)]
)
def test_kills_lose_nothing(part: int) -> None:
    result = ask("kills", seed=seeded(part), count=KILLS)
    print(result)
    assert result["problems"] == []
    assert result["kills"] == KILLS
    assert result["in_save"] >= IN_SAVE
    assert result["in_start"] >= 1
    assert result["runs"] >= 1
    assert result["acknowledged"] >= 30
