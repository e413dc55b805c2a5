"""The run folder that most tests of the report read."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import write_run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run of 120 steps."""
    return write_run(tmp_path / "demo")
