"""SHA-256 of data files, kept until a file changes: hashing gigabytes at every start of a run would take seconds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from pathlib import Path

from sengi.cache import cache_folder
from sengi.errors import DataError, StorageError
from sengi.storage import create_folder, write_file

_WORTH_BYTES = 1 << 24  # smaller files are hashed as quickly as looked up
_SETTLED_SECONDS = 2.0  # a file that changed just now may change again under the same time stamp


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content.

    That of a large file is remembered in the cache, under its place, size, and times of change down to the nanosecond.
    The time of the last change of its entry (ctime) cannot be set back by hand.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_size < _WORTH_BYTES:
                return hashlib.file_digest(file, "sha256").hexdigest()
            key = repr((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
            known = cache_folder() / "hashes" / hashlib.sha256(key.encode()).hexdigest()[:32]
            with contextlib.suppress(OSError, ValueError):
                found = known.read_text(encoding="ascii")
                if len(found) == 64:
                    return found
            settled = time.time() - max(stat.st_mtime, stat.st_ctime) > _SETTLED_SECONDS
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if settled:
        with contextlib.suppress(StorageError):  # a full or read-only cache only costs time
            create_folder(known.parent)
            write_file(known, digest.encode())
    return digest
