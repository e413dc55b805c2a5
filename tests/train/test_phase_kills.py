"""kill -9 of a run in three phases, at random moments, those between the phases among them; it ends bit-equal."""

from __future__ import annotations

import pytest
from crash_harness import ask, seeded

KILLS = 25


# As in test_crash_kills.py: nothing that was called saved is lost, and at the end of each run dynamics, samples,
# scores, weights, moments and the choices between phases are byte for byte those of a run that never died.
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 6))])
def test_kills_in_and_between_phases_lose_nothing(part: int) -> None:
    result = ask("phased_kills", seed=seeded(100 + part), count=KILLS)
    print(result)
    assert result["problems"] == []
    assert result["kills"] == KILLS
    assert result["runs"] >= 1
    # the run is worth killing: a checkpoint that is not the last of its phase was handed on
    handed_on = result["chosen"][:-1]
    assert any(chosen < last for chosen, last in handed_on)
