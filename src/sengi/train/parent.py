"""A process that must not outlive the one that started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; without this, children outlive a kill -9 (measured).

    Args:
        parent: process id of the parent; if it is gone already, this process ends here.
    """
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the request
        os.kill(os.getpid(), signal.SIGKILL)
