"""The only writer of run folders: replace a file, append a line, publish a folder, verify it.

Every byte of a run folder passes through the raw calls in disk.py, which numbers them. Tests hang a fault
on the Nth call (kill, disk full, I/O error, short write) and so reach every moment of a save. The promises:

* ``write_file``  - the old content or the new content, never a mix, also after a crash.
* ``AppendLog``   - whole lines; a line torn by a crash is cut off when the log is opened again.
* ``publish``     - the folder exists whole or not at all; "saved" is said only after it is safe on disk.
* ``verify``      - every byte is hashed before anything is parsed; a flipped bit is found.

A failed fsync is never retried on the same file: the kernel may have dropped the data and forgotten the error
(Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sengi.disk import CHUNK, disk, explained
from sengi.errors import CheckpointError, InputError, StorageError

MANIFEST = "manifest.json"
SEAL = "manifest.json.sha256"  # hash of the manifest itself, so that no bit of it can change unseen


def create_folder(path: Path) -> None:
    """Make ``path`` and its missing parents, safely on disk."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    with explained(path, "making the folder"):
        for folder in reversed(missing):
            try:
                disk.mkdir(folder)
            except FileExistsError:
                continue
            _sync_folder(folder.parent)


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` atomically: after a crash it holds the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with explained(path, f"writing {len(data):,} bytes"):
        try:
            _write_new(temporary, data)
            disk.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON."""
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _write_new(path: Path, *pieces: bytes | memoryview) -> None:
    fd = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        for data in pieces:
            disk.write_all(fd, data, path)
        disk.fsync(fd, path)
    finally:
        os.close(fd)


def _sync_folder(path: Path) -> None:
    fd = disk.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.fsync(fd, path)
    finally:
        os.close(fd)


class AppendLog:
    """A file of lines that only grows. Opening it cuts off a line that a crash left half written.

    Args:
        path: the log; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(path, "opening"):
            self._fd = disk.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            size = os.fstat(self._fd).st_size
            whole = _end_of_last_line(self._fd, size)
            self.torn_bytes = size - whole
            if self.torn_bytes:
                disk.truncate(self._fd, whole, path)

    def append(self, value: dict[str, Any]) -> None:
        """Add one JSON line; it survives a killed process at once, a power cut after :meth:`sync`."""
        line = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
        with explained(self.path, f"appending {len(line):,} bytes"):
            disk.write_all(self._fd, line, self.path)

    def sync(self) -> None:
        """Flush to the device."""
        with explained(self.path, "flushing"):
            disk.fsync(self._fd, self.path)

    def close(self) -> None:
        """Close the file; does not flush."""
        os.close(self._fd)


def _end_of_last_line(fd: int, size: int) -> int:
    position = size
    while position > 0:
        start = max(0, position - 65536)
        newline = os.pread(fd, position - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of an append-only log; a torn last line is left out.

    Raises:
        StorageError: a line before the last is not JSON; names file and line.
    """
    return read_new_lines(path, 0, 0)[0]


def read_new_lines(path: Path, start: int, known: int) -> tuple[list[dict[str, Any]], int]:
    """What a log gained, as :func:`read_lines`, and the byte at which its next line will begin.

    Args:
        path: need not exist.
        start: byte after the lines that are known.
        known: how many they are, for messages.
    """
    if not path.exists():
        return [], start
    with explained(path, "reading"), path.open("rb") as file:
        file.seek(start)
        *lines, torn = (content := file.read()).split(b"\n")
    values = []
    for number, line in enumerate(lines, start=known + 1):
        try:
            values.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise StorageError(f"{path}:{number}: not a JSON line; the file was changed by hand, restore it") from None
    return values, start + len(content) - len(torn)


class Stage:
    """A folder in the making, beside its final place. Several processes may fill one stage.

    Attributes:
        records: file name -> ``{"sha256", "size"}`` of what *this* process wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write one new file of these pieces (``name`` may have one folder in it) and flush it to the device."""
        target = self.path / name
        size = sum(map(len, pieces))
        with explained(target, f"writing {size:,} bytes"):
            if not target.parent.exists():
                with contextlib.suppress(FileExistsError):  # another rank was first
                    disk.mkdir(target.parent)
            _write_new(target, *pieces)
        digest = hashlib.sha256()
        for data in pieces:
            digest.update(data)
        self.records[name] = {"sha256": digest.hexdigest(), "size": size}


def begin(folder: Path) -> Stage:
    """Start a folder that :func:`publish` will move to ``folder``.

    Raises:
        InputError: ``folder`` exists already; a published folder is never overwritten.
    """
    if folder.exists():
        raise InputError(f"{folder}: exists already and is never overwritten; choose another name")
    stage = Stage(folder.with_name(f".tmp-{folder.name}-{secrets.token_hex(4)}"))
    with explained(stage.path, "making the folder"):
        disk.mkdir(stage.path)
    return stage


def publish(stage: Stage, folder: Path, facts: dict[str, Any]) -> None:
    """Seal ``stage`` with a manifest and move it to ``folder``. On return it is safe on disk.

    Args:
        stage: all files written; ``stage.records`` must name every one of them (merge those of other processes).
        folder: the final place.
        facts: JSON facts kept in the manifest beside the hashes (step, samples seen, format version).
    """
    manifest = json.dumps({**facts, "files": stage.records}, indent=1, sort_keys=True).encode()
    seal = f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()
    for name, data in ((MANIFEST, manifest), (SEAL, seal)):
        with explained(stage.path / name, f"writing {len(data):,} bytes"):
            _write_new(stage.path / name, data)
    with explained(folder, "publishing the folder"):
        for inner in {(stage.path / name).parent for name in stage.records} | {stage.path}:
            _sync_folder(inner)
        disk.rename(stage.path, folder)
        _sync_folder(folder.parent)


def verify(folder: Path) -> dict[str, Any]:
    """Hash every file of a published folder against its manifest, before anything is parsed.

    Returns:
        The manifest: the facts given to :func:`publish` and ``files``.

    Raises:
        CheckpointError: naming the first file that is missing, added, cut, grown or changed.
    """
    manifest = read_manifest(folder)
    files: dict[str, Any] = manifest["files"]
    with explained(folder, "listing"):
        found = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*")}
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    for name in sorted({*files, *folders, MANIFEST, SEAL} ^ set(found)):
        what = "not in the manifest" if name in found else "missing"
        raise CheckpointError(f"{folder / name}: {what}; this checkpoint cannot be trusted")
    for name, status in sorted(found.items()):
        right = stat.S_ISDIR if name in folders else stat.S_ISREG
        if not right(status.st_mode):  # a link's target can change after it was hashed
            raise CheckpointError(f"{folder / name}: a link or special file; a checkpoint has plain files and folders")
    for name, record in sorted(files.items()):
        path = folder / name
        if found[name].st_size != record["size"]:
            raise CheckpointError(f"{path}: {found[name].st_size:,} bytes, the manifest says {record['size']:,}")
        if _hash_file(path) != record["sha256"]:
            raise CheckpointError(f"{path}: the content changed since it was saved (SHA-256 differs)")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder, checked against its seal but not against the files.

    Raises:
        CheckpointError: manifest or seal is missing or changed, or ``folder`` is a link.
    """
    if folder.is_symlink():
        raise CheckpointError(f"{folder}: a link, not a folder; move the checkpoint itself here")
    try:
        for name in (MANIFEST, SEAL):
            if not stat.S_ISREG((folder / name).lstat().st_mode):  # reading a pipe would wait for ever
                raise CheckpointError(f"{folder / name}: a link or special file; a checkpoint has plain files only")
        data = (folder / MANIFEST).read_bytes()
        seal = (folder / SEAL).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise CheckpointError(f"{folder}: has no manifest; the save was not finished, or files are missing") from None
    if seal != f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n".encode():
        raise CheckpointError(f"{folder / MANIFEST}: manifest and seal do not agree; one of them was changed")
    try:
        manifest = dict(json.loads(data))
        whole = all({"sha256", "size"} <= record.keys() for record in manifest["files"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise CheckpointError(f"{folder / MANIFEST}: not a manifest of Sengi, though its seal agrees; it was forged")
    return manifest


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with explained(path, "reading"), path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def published(parent: Path, prefix: str) -> list[Path]:
    """Folders named ``<prefix><number>`` in ``parent``, by rising number; not verified."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)")
    with explained(parent, "listing"):
        found = [(int(match[1]), path) for path in parent.iterdir() if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def remove(folder: Path) -> None:
    """Remove a folder: first out of sight by one rename, so that a crash leaves no half folder in its place."""
    trash = folder.with_name(f".trash-{folder.name}-{secrets.token_hex(4)}")
    with explained(folder, "removing"):
        disk.rename(folder, trash)
        _remove_tree(trash)


def set_aside(folder: Path) -> Path:
    """Rename a corrupt folder to ``.quarantine-...`` so that it is kept for a look but never loaded."""
    target = folder.with_name(f".quarantine-{folder.name}-{secrets.token_hex(4)}")
    with explained(folder, "setting aside"):
        disk.rename(folder, target)
    return target


def sweep(parent: Path) -> list[str]:
    """Remove what a crash left behind (``.tmp-*``, ``.trash-*``, ``.*.tmp``); returns their names."""
    with explained(parent, "removing left-overs"):
        left = [p for p in parent.iterdir() if re.fullmatch(r"\.(tmp|trash)-.*|\..*\.[0-9a-f]{8}\.tmp", p.name)]
        for path in left:
            _remove_tree(path)
    return [path.name for path in left]


def _remove_tree(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():  # what a link points at is not ours
        disk.unlink(folder)
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            disk.rmdir(path)
        else:
            disk.unlink(path)
    disk.rmdir(folder)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the one-writer lock of a run folder; the kernel drops it when the process dies.

    Raises:
        InputError: another process holds it; names its pid.
    """
    path = folder / "run.lock"
    with explained(path, "opening"):
        fd = disk.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 64, 0).decode("ascii", "replace").strip() or "unknown"
            raise InputError(f"{folder}: process {holder} is already working on this run; wait or stop it") from None
        with explained(path, "writing"):
            disk.truncate(fd, 0, path)
            disk.write_all(fd, str(os.getpid()).encode(), path)
        yield
    finally:
        os.close(fd)
