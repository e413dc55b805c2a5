"""For all tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from sengi.model.cost import peak_flops
from sengi.train import setup


@pytest.fixture(autouse=True, scope="session")
def peak_measured_once() -> Iterator[None]:
    """What this machine can do is measured by the first run, which takes as long as a quarter of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "peak_flops", cache(peak_flops))
        yield
