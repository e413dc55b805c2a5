"""The raw file calls of the storage module, numbered so that a test can put a fault on any one of them."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sengi.errors import StorageError

CHUNK = 8 << 20  # bytes a single write call asks for
_CURES = {
    errno.ENOSPC: "free space on this disk, then run the same command again to continue",
    errno.EDQUOT: "your disk quota is full: free space, then run the same command again to continue",
    errno.EROFS: "the disk is read-only; choose another output_dir",
    errno.EACCES: "permission denied; choose another output_dir or change its owner",
    errno.EPERM: "permission denied; choose another output_dir or change its owner",
    errno.EMFILE: "too many open files; raise 'ulimit -n'",
}


class Disk:
    """The raw calls, numbered from 1; ``fault(name, number, path)`` runs before each (tests only).

    A fault may raise OSError, end the process, or return a number of bytes to which a write is cut short.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._counting = threading.Lock()  # a checkpoint is written in a thread
        self.fault: Callable[[str, int, Path], int | None] | None = None

    def _enter(self, name: str, path: Path) -> int | None:
        with self._counting:
            self.calls += 1
            number = self.calls
        return self.fault(name, number, path) if self.fault is not None else None

    def open(self, path: Path, flags: int) -> int:
        """Open with mode 0644, close-on-exec."""
        self._enter("open", path)
        return os.open(path, flags | os.O_CLOEXEC, 0o644)

    def write_all(self, fd: int, data: bytes | memoryview, path: Path) -> None:
        """Write everything, in as many calls as the kernel wants."""
        view = memoryview(data).cast("B")
        while view:
            cut = self._enter("write", path)
            written = os.write(fd, view[: min(CHUNK, len(view))] if cut is None else view[: max(1, cut)])
            view = view[written:]

    def fsync(self, fd: int, path: Path) -> None:
        """Flush a file or folder to the device."""
        self._enter("fsync", path)
        os.fsync(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic rename; replaces a file, never a folder with content."""
        self._enter("rename", target)
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        self._enter("unlink", path)
        os.unlink(path)

    def mkdir(self, path: Path) -> None:
        """Make one folder."""
        self._enter("mkdir", path)
        os.mkdir(path, 0o755)

    def rmdir(self, path: Path) -> None:
        """Remove one empty folder."""
        self._enter("rmdir", path)
        os.rmdir(path)

    def truncate(self, fd: int, size: int, path: Path) -> None:
        """Cut a file to ``size`` bytes."""
        self._enter("truncate", path)
        os.ftruncate(fd, size)


disk = Disk()


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into one line that names the file, the space left and the cure."""
    try:
        yield
    except OSError as error:
        cure = _CURES.get(error.errno or 0, "check the disk, then run the same command again to continue")
        try:
            free = f"; {shutil.disk_usage(path.parent).free / 1e9:.2f} GB free"
        except OSError:
            free = ""
        raise StorageError(f"{path}: {doing} failed: {error.strerror or error}{free}; {cure}") from error
