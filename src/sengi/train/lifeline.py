"""Signs of life between the processes of a run: whichever dies, freezes or raises alone, all stop, and say why.

A collective call waits for a rank that will never come: until NCCL's or gloo's timeout, minutes later, which then names
the wrong rank. So every rank keeps a connection to rank 0 beside them. A process that dies closes its connection, at
once; one that freezes goes silent; one that raises says so before it leaves. Rank 0 tells all others the first cause.
The thread that listens gives the main thread a moment to fail by itself, and ends the process if that hangs in a
collective call. Like a kill, this loses nothing that was saved (docs/crash-safety.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

from sengi.errors import InputError, RankError, SengiError, StoppedByRequest
from sengi.train.distributed import World

TIMEOUT_VARIABLE = "SENGI_RANK_TIMEOUT"
TIMEOUT = 20.0  # seconds of silence after which a rank counts as frozen
GRACE = 5.0  # seconds the main thread has to fail by itself once a rank is lost
LOOK = 0.2  # seconds after which the thread looks whether it shall end
ASK = 1.0  # seconds to wait for the cause of an error that is probably another rank's


@dataclass(frozen=True)
class Process:
    """Where a rank lives."""

    rank: int
    pid: int
    parent: int
    host: str

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


class _Line:
    """One connection: messages are JSON, a line each; an empty object says "alive"."""

    def __init__(self, connection: socket.socket, process: Process | None) -> None:
        connection.settimeout(1.0)
        self.connection, self.process = connection, process
        self.heard = time.monotonic()
        self.left = False  # said goodbye
        self._text = b""

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # that it is gone is found out by reading
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that came; None at the end of the connection."""
        try:
            piece = self.connection.recv(65536)
        except OSError:
            return None
        if not piece:
            return None
        self.heard = time.monotonic()
        *lines, self._text = (self._text + piece).split(b"\n")
        return [json.loads(line) for line in lines]


class Lifeline:
    """The connections of this rank; does nothing in a world of one. All ranks enter it together.

    Args:
        world: the processes of the run.
        lost: called by the listening thread with the cause before it ends a process that hangs.

    Attributes:
        cause: why the run cannot go on, empty while it can.
    """

    def __init__(self, world: World, lost: Callable[[RankError], None]) -> None:
        self.world, self._lost = world, lost
        self.cause = ""
        self._found_here = False
        self._known, self._closing = threading.Event(), threading.Event()
        self._lines: list[_Line] = []
        self._server: socket.socket | None = None
        self._token = ""
        self._timeout = rank_timeout()
        self._me = Process(world.rank, os.getpid(), os.getppid(), socket.gethostname())
        self._thread = threading.Thread(target=self._listen, name="lifeline", daemon=True)

    def __enter__(self) -> Lifeline:
        if self.world.size > 1:
            port, self._token = self.world.on_first(self._open)
            self.world.together(lambda: self._connect(port))
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.world.size == 1:
            return
        first = self.explained(error) if error is not None else None
        told = error is None or getattr(first, "elsewhere", False) or isinstance(first, StoppedByRequest | RankError)
        farewell = {"bye": True} if told else {"cause": f"{self._me}: {_in_words(error)}"}
        self._closing.set()
        self._thread.join()
        while self._server is not None and wait([self._server], 0):  # ranks that were not listened to yet
            self._accept()
        for line in self._lines:
            line.send(farewell)
            line.connection.close()
        if self._server is not None:
            self._server.close()
        if first is not error and first is not None:
            raise first from error

    def explained(self, error: BaseException) -> BaseException:
        """The loss of another rank in place of an error that only followed from it, else ``error`` itself.

        A broken connection (RuntimeError) and torchrun's SIGTERM follow from a lost rank.
        """
        if self.world.size > 1 and isinstance(error, RuntimeError | StoppedByRequest) and self._known.wait(ASK):
            return self._rank_error()
        return error

    def _rank_error(self) -> RankError:
        error = RankError(f"{self.cause}; all processes of the run were ended: run the same command again to continue")
        error.elsewhere = not self._found_here
        return error

    def _open(self) -> list[Any]:
        try:
            self._server = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=self.world.size
            )
        except (OSError, ValueError):  # a machine without IPv6
            self._server = socket.create_server(("", 0), backlog=self.world.size)
        self._server.settimeout(1.0)
        return [self._server.getsockname()[1], secrets.token_hex(16)]

    def _connect(self, port: int) -> None:
        if not self.world.first:
            place = (os.environ.get("MASTER_ADDR", "localhost"), port)
            try:
                line = _Line(socket.create_connection(place, timeout=60), None)
            except OSError as error:
                raise SengiError(
                    f"rank {self.world.rank} cannot reach rank 0 at {place[0]} port {port} ({error}); the machines of "
                    "a run must reach each other on all ports"
                ) from error
            line.send({"token": self._token, **asdict(self._me)})
            self._lines.append(line)

    def _listen(self) -> None:
        turn = min(2.0, self._timeout / 5)
        beat = woke = time.monotonic()
        while not self._closing.is_set():
            sockets = [line.connection for line in self._lines] + ([self._server] if self._server else [])
            ready = wait(sockets, LOOK) if sockets else []
            if not sockets:
                self._closing.wait(LOOK)
            now = time.monotonic()
            if now - woke > self._timeout / 2:  # this process itself was frozen: it knows nothing of the others
                for line in self._lines:
                    line.heard = now
            woke = now
            if self._server in ready:
                self._accept()
            for line in [line for line in self._lines if line.connection in ready]:
                self._read(line)
            if now - beat >= turn:
                beat = now
                for line in self._lines:
                    line.send({})
            for line in self._lines:
                if not line.left and line.process and now - line.heard > self._timeout:
                    line.left = True
                    self._stop(f"{line.process} gave no sign of life for {self._timeout:.0f} s", line.process)

    def _accept(self) -> None:
        assert self._server is not None
        try:
            line = _Line(self._server.accept()[0], None)
        except OSError:  # it gave up before it was heard
            return
        messages: list[dict[str, Any]] = []
        try:
            first, *messages = line.receive() or [{}]
            known = secrets.compare_digest(str(first.pop("token")), self._token)
            line.process = Process(**first)
        except (ValueError, KeyError, TypeError, AttributeError):
            known = False
        if not known:  # a stranger at the port is sent away
            line.connection.close()
            return
        line.send(asdict(self._me))
        self._lines.append(line)
        self._hear(line, messages)  # it may have failed already

    def _hear(self, line: _Line, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            if "pid" in message:
                line.process = Process(**message)
            line.left |= "bye" in message or "cause" in message
            if "cause" in message:
                frozen = message.get("frozen")
                self._stop(message["cause"], Process(**frozen) if frozen else None, here=False)

    def _read(self, line: _Line) -> None:
        messages = line.receive()
        self._hear(line, messages or [])
        if messages is None:
            self._lines.remove(line)
            line.connection.close()
            if not line.left:
                place = line.process or "rank 0"
                self._stop(f"{place} died without a word: killed, out of memory, or its machine is gone")

    def _stop(self, cause: str, frozen: Process | None = None, here: bool = True) -> None:
        """Learn the first cause, pass it on, and end this process unless the main thread does."""
        if self.cause or self._closing.is_set():
            return
        # of a cause that several ranks find, the lowest of them tells it
        self.cause, self._found_here = cause, here and self.world.rank <= 1
        self._known.set()
        if self.world.first:
            for line in self._lines:
                line.send({"cause": cause, "frozen": asdict(frozen) if frozen else None})
        if frozen is not None:
            self._kill(frozen)
        threading.Thread(target=self._end_if_stuck, name="lifeline-end", daemon=True).start()

    def _kill(self, frozen: Process) -> None:
        """End a frozen child of the same torchrun, which itself would wait 30 s for it."""
        if (frozen.host, frozen.parent) == (self._me.host, self._me.parent) and _parent_of(frozen.pid) == frozen.parent:
            with contextlib.suppress(OSError):
                os.kill(frozen.pid, signal.SIGKILL)

    def _end_if_stuck(self) -> None:
        if self._closing.wait(GRACE):
            return
        error = self._rank_error()
        self._lost(error)
        if not error.elsewhere:
            print(f"error: rank {self.world.rank}: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)


def rank_timeout() -> float:
    """Seconds of silence after which a rank counts as frozen.

    Raises:
        InputError: the environment variable is not a number of seconds.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise InputError(f"{TIMEOUT_VARIABLE} is {text!r}: give seconds, 1 to 86400")
    return seconds


def _in_words(error: BaseException | None) -> str:
    text = " ".join(str(error).split())[:1000]
    return text if isinstance(error, SengiError) else f"{type(error).__name__}: {text}"


def _parent_of(pid: int) -> int | None:
    """Parent of a process of this machine, as Linux tells it."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
