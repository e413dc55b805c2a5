"""Open a data file, compressed or not, with limits: a small hostile file must not fill the memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sengi.data.rows import printable
from sengi.errors import DataError

MIB = 1 << 20
COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
BUFFER_BYTES = 256 * 1024
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader accepts before it calls a file broken or hostile.

    Attributes:
        line_bytes: longest line of JSONL or CSV, longest value of a row of the other kinds.
        ratio: decompressed bytes for each compressed byte. Text compresses 3 to 30 times.
        ratio_after: decompressed bytes before the ratio is judged.
        total_bytes: decompressed bytes of one file.
        document_bytes: a file that is read as one piece (JSON, compressed Parquet).
    """

    line_bytes: int = 16 * MIB
    ratio: int = 200
    ratio_after: int = 64 * MIB
    total_bytes: int = 256 * 1024 * MIB
    document_bytes: int = 512 * MIB


LIMITS = Limits()


def open_regular(path: Path, name: str) -> io.FileIO:
    """Open a regular file for reading; links are followed.

    Raises:
        DataError: it is missing, not readable, or a folder, pipe, socket or device.
    """
    try:
        # Without O_NONBLOCK the open of a pipe waits for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{name}: cannot be opened ({reason}); check the path and its permissions") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{name}: not a regular file; copy its content into a file and name that")
    return io.FileIO(descriptor, "rb")


class BoundedReader(io.RawIOBase):
    """The decompressed bytes of a file, counted against its limits.

    Args:
        raw: the file as it lies on disk.
        name: its name in messages.
        compression: one of ``COMPRESSIONS``, or "".
        limits: see ``Limits``.
        on_bytes: called with the bytes read from disk since the last call (for progress bars).
    """

    def __init__(
        self, raw: io.FileIO, name: str, compression: str, limits: Limits, on_bytes: Callable[[int], None] | None
    ) -> None:
        self._raw = raw
        self._name = name
        self._compressed = compression != ""
        self._limits = limits
        self._on_bytes = on_bytes
        self._read_from_disk = 0
        self._produced = 0
        self._decoded = _decoder(raw, compression)

    def readable(self) -> bool:
        """Return True: this is a source."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; see ``io.RawIOBase``.

        Raises:
            DataError: the file is cut, corrupt, or over a limit.
        """
        try:
            count = self._decoded.readinto(buffer) or 0
        except BROKEN as error:
            what = "decompressed: cut, corrupt, or not what its suffix says" if self._compressed else "read"
            raise DataError(f"{self._name}: cannot be {what} ({_reason(error)}); get the file again") from None
        self._produced += count
        self._count()
        return count

    def _count(self) -> None:
        position = self._raw.tell()
        if self._on_bytes is not None and position != self._read_from_disk:
            self._on_bytes(position - self._read_from_disk)
        self._read_from_disk = position
        if not self._compressed:
            return
        limits = self._limits
        if self._produced > limits.ratio_after and self._produced > limits.ratio * max(position, 1):
            raise DataError(
                f"{self._name}: {self._produced:,} bytes came out of {position:,} compressed ones, more than "
                f"{limits.ratio} to 1, which no text does; decompress it yourself if you trust it"
            )
        if self._produced > limits.total_bytes:
            raise DataError(f"{self._name}: larger than {limits.total_bytes:,} bytes when decompressed; split the file")

    def close(self) -> None:
        """Close the decompressor and the file."""
        if not self.closed:
            self._decoded.close()
            self._raw.close()
        super().close()


def open_bounded(
    path: Path, name: str, compression: str, limits: Limits, on_bytes: Callable[[int], None] | None = None
) -> io.BufferedReader:
    """Open ``path`` for reading its decompressed bytes under ``limits``.

    Args:
        path: the file.
        name: its name in messages.
        compression: one of ``COMPRESSIONS``, or "" for none.
        limits: see ``Limits``.
        on_bytes: see ``BoundedReader``.

    Raises:
        DataError: it cannot be opened; later reads raise it when the file is cut, corrupt or over a limit.
    """
    raw = open_regular(path, name)
    return io.BufferedReader(BoundedReader(raw, name, compression, limits, on_bytes), BUFFER_BYTES)


def read_document(stream: io.BufferedReader, name: str, limits: Limits) -> bytes:
    """Return all bytes of a file that can only be read as one piece.

    Raises:
        DataError: it is larger than ``limits.document_bytes``.
    """
    data = stream.read(limits.document_bytes + 1)
    if len(data) > limits.document_bytes:
        raise DataError(
            f"{name}: larger than {limits.document_bytes:,} bytes, and this kind of file is read as one piece; "
            "write it as JSONL or plain Parquet"
        )
    return data


def _decoder(raw: io.FileIO, compression: str) -> Any:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if compression == ".bz2":
        return bz2.BZ2File(raw)
    if compression == ".xz":
        return lzma.LZMAFile(raw)
    if compression == ".zst":
        return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return raw


def _reason(error: BaseException) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__, 100)
