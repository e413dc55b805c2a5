"""Processes of Python that begin at once: forks of one that has imported what a run needs (warm_server.py).

Starting Python, torch and transformers takes ten seconds of a core, a small run one or two. What is forked is a
process of its own all the same, with its own pid to send signals to, its own environment and its own memory. What
starts programs itself (the executor of studies, the second process of evaluations, torchrun) is not helped.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]


class Process:
    """A started process, as subprocess.Popen has it.

    Attributes:
        pid: of it.
        returncode: as of Popen; None until it was waited for.
    """

    def __init__(self, server: _Server, pid: int) -> None:
        self._server, self.pid, self.returncode = server, pid, None
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit code, -N after signal N, or None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float) -> int:
        """The exit code.

        Raises:
            subprocess.TimeoutExpired: it is still there after ``timeout`` seconds.
        """
        if self.returncode is None:
            if not select.select([self._handle], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = self._server.ask({"wait": self.pid})
            os.close(self._handle)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it was waited for."""
        if self.returncode is None:
            os.kill(self.pid, number)


class _Server:
    """The process that is forked; it ends, and takes its forks along, when this one does."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.warm_server", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def ask(self, job: dict[str, Any], files: Sequence[int] = ()) -> int:
        """Send a job with open files and wait for its answer."""
        socket.send_fds(self._socket, [json.dumps(job).encode()], files)
        answer = self._socket.recv(64)
        assert answer, "the warm server died; its traceback is in the captured stderr"
        return int(answer)


@cache
def _server() -> _Server:
    """One for each test process, started on first use."""
    return _Server()


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: IO[Any] | int | None = None,
    stderr: IO[Any] | int | None = None,
) -> Process:
    """Start ``python COMMAND``.

    Args:
        command: ``-m MODULE ...``, ``-c PROGRAM ...`` or ``FILE ...``.
        env: the whole environment; this process's own without it. What Python and torch read as they are started
            (PYTHONPATH, PYTHONUNBUFFERED, OMP_NUM_THREADS) is that of the tests.
        stdout: a file, or its number; this process's own without it.
    """
    files = [own if f is None else f if isinstance(f, int) else f.fileno() for f, own in ((stdout, 1), (stderr, 2))]
    job = {"command": list(command), "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
    return Process(_server(), _server().ask(job, files))


def run(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, ranks: int = 0, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run to the end.

    Args:
        command: as of :func:`start`.
        ranks: so many processes with the variables that torchrun sets; 0 is one process without them.

    Returns:
        Exit code (of the first rank that failed), and what was printed, by all ranks.

    Raises:
        subprocess.TimeoutExpired: after killing what is left.
    """
    environment = dict(os.environ if env is None else env)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        processes = [
            start(command, env=environment | place, stdout=out, stderr=errors) for place in (_places(ranks) or [{}])
        ]
        try:
            codes = [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                process.send_signal(9)
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(list(command), max(codes, key=abs), out.read(), errors.read())


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on.

    Below those that the kernel gives to connections: while its server is not there yet, such a port may be given to a
    connection, even to the one that looks for that server, which then talks to itself for ever.
    """
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            with contextlib.suppress(OSError):
                free = stack.enter_context(socket.create_server(("127.0.0.1", random.randrange(15_000, 32_768))))
                found.append(free.getsockname()[1])
        return found


def _places(ranks: int) -> list[dict[str, str]]:
    port = str(free_ports(1)[0])
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
