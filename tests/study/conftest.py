"""For the tests of studies: a scheduler looks at its runs again at once."""

from __future__ import annotations

import pytest

from sengi.study import scheduler


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "POLL", 0.0)
