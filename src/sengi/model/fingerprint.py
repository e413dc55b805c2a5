"""A name for the content of a model's files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sengi.model.inspect import weight_files

PIECE = 2**20  # bytes read at each end of a weight file


def files_fingerprint(folder: Path) -> str:
    """A name for the content of a model folder, independent of where it lies and when it was copied.

    The hash covers config.json, the name, length and header of every weight file and the first and last MiB of
    its data. It tells two trainings of one model apart, because an optimizer step changes every tensor; it is no
    protection against somebody who edits the middle of a file (the manifest of a checkpoint is).

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in weight_files(folder):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            digest.update(file.read(min(header, size) + PIECE))
            file.seek(max(0, size - PIECE))
            digest.update(file.read(PIECE))
    return digest.hexdigest()
