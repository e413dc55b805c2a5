"""For the whole suite: one thread, no network, no warnings of transformers, and a cache that goes away again.

The variables are set before anything imports torch or transformers, and child processes inherit them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tests.model.tiny_folder and benchmarks can be imported

_cache = tempfile.TemporaryDirectory(prefix="sengi-tests-")
os.environ.update(
    SENGI_CACHE=_cache.name,
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)

# A machine under load must not fail a property; the same examples on every run make a failure repeatable.
settings.register_profile(
    "sengi", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sengi")


# Begun first, so that no worker of pytest-xdist sits idle beside another's last minutes of them. First of all the one
# whose runs on 1, 2 and 4 processes all its tests share: handed out later, each worker would make those runs again.
LONG = (
    "test_distributed.py",
    "test_crash_real_process.py",
    "test_study_kills.py",
    "test_lora_run.py",
    "test_crash_faults.py",
    "test_crash_kills.py",
    "test_lost_rank.py",
    "test_evaluation.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long test files before short ones; inside both groups the order stays."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """torch was perhaps imported by a plugin before the variables above were set."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for a test that looks at what is built."""
    monkeypatch.setenv("SENGI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
