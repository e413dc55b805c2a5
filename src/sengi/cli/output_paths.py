"""Places for results, tried before the work that is to be kept there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sengi.errors import InputError


def check_output_folder(option: str, folder: Path) -> None:
    """Make a folder and write into it for a trial.

    Args:
        option: that named it, for the message.
        folder: made with its parents where it is missing.

    Raises:
        InputError: it cannot be made or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(b"0")
    except OSError as error:
        reason = error.strerror or str(error)
        text = f"{option} {folder}: cannot be written ({reason}); free space or name another folder"
        raise InputError(text) from None


def check_output_file(option: str, file: Path) -> None:
    """Find out whether a file can be written or replaced, without touching it.

    Args:
        option: that named it, for the message.
        file: in a folder that exists.

    Raises:
        InputError: its folder is missing or cannot be written into, or a folder stands in its place.
    """
    if not file.parent.is_dir():
        raise InputError(f"{option} {file}: the folder {file.parent} does not exist; create it first")
    if file.is_dir():
        raise InputError(f"{option} {file}: a folder; name a file in it")
    if not file.exists():
        check_output_folder(option, file.parent)
    elif not os.access(file, os.W_OK):
        raise InputError(f"{option} {file}: the file is read-only; name another one")
