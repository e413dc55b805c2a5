"""Threads of several processes on the CPUs of one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sengi.train.distributed import _threads_were_asked_for

PROGRAM = """
import os, torch
os.sched_getaffinity = lambda _: set(range(8))  # as on a machine of eight cores
from sengi.train.distributed import end_world, start_world
start_world()
os.write(1, f"threads {torch.get_num_threads()}\\n".encode())
end_world()
"""


# Rule: processes share the cores evenly, whatever torchrun says of its own (1 for each); what somebody asked for stays.
@pytest.mark.parametrize(("asked", "threads"), [({}, 4), ({"OMP_NUM_THREADS": "1"}, 1)])
def test_processes_of_torchrun_share_the_cores(asked: dict[str, str], threads: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*words, str(tmp_path / "program.py")], env=environment | asked, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines().count(f"threads {threads}") == 2


@pytest.mark.parametrize(
    ("ours", "of_parent", "expected"),
    [
        ({}, b"", False),
        ({"OMP_NUM_THREADS": "4"}, b"", True),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, b"PATH=/bin\0HOME=/", False),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, b"PATH=/bin\0OMP_NUM_THREADS=1\0", True),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, None, True),  # cannot be told: as it is
    ],
)
def test_who_asked_for_threads(
    ours: dict[str, str], of_parent: bytes | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    if of_parent is not None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "environ").write_bytes(of_parent)
    assert _threads_were_asked_for(7, tmp_path) == expected
