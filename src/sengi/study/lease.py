"""Who works on a run: one training at a time, whatever schedulers believe.

The lease on a run is the lock of its folder. The training itself holds it, and the kernel drops it the moment the
training dies, so on one machine no lease is ever stale. Locks do not cross every network file system: a run that
another machine trains is known by its heartbeat in status.json, which a training renews every few seconds.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sengi import storage
from sengi.errors import InputError, StorageError
from sengi.study.recording import read_mapping
from sengi.study.space import Run

EXPIRES = 300.0  # seconds without a heartbeat after which another machine's training counts as dead


def holder(run: Run) -> str:
    """Who trains this run now, as a sentence; empty if nobody does, or it has no folder yet."""
    if not run.folder.is_dir():
        return ""
    try:
        with storage.lock(run.folder):
            pass
    except InputError as error:
        return str(error)
    status = read_mapping(run.folder / "status.json")
    if beats_elsewhere(status):
        return f"{run.folder}: {status.get('host')} trains it, or died less than {EXPIRES:.0f} seconds ago"
    return ""


def beats_elsewhere(status: Mapping[str, Any]) -> bool:
    """Whether a run's status.json says that another machine trains it, in these minutes."""
    age = time.time() - float(status.get("heartbeat", 0))
    return status.get("state") == "running" and status.get("host") != socket.gethostname() and age < EXPIRES


def at_work(folder: Path) -> bool:
    """Whether a process of this machine holds the lock of a study folder; one that may not be opened tells nothing."""
    if not (folder / "run.lock").exists():
        return False
    try:
        with storage.lock(folder):
            return False
    except InputError:
        return True
    except StorageError:
        return False
