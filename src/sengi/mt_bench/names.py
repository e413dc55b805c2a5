"""What a model is called in FastChat's files, so that no two models share a name."""

from __future__ import annotations

import json
from pathlib import Path

from sengi.errors import InputError
from sengi.mt_bench.cache import file_name
from sengi.storage import create_folder, write_json


def model_name(folder: Path) -> str:
    """What a model is called in FastChat's files; a checkpoint is named with its run.

    >>> model_name(Path("/runs/first/checkpoint-20"))
    'first-checkpoint-20'
    """
    path = folder.resolve()
    if path.name.startswith("checkpoint-"):
        return file_name(f"{path.parent.name}-{path.name}")
    if path.parent.name == "snapshots":  # the hub's cache: models--owner--name/snapshots/<commit>
        return file_name(path.parent.parent.name.removeprefix("models--").replace("--", "__"))
    return file_name(path.name)


def claim_name(folder: Path, model_folder: Path, fingerprint: str) -> tuple[str, list[str]]:
    """The name of a model in FastChat's files: its folder's, unless that belongs to a model of other content.

    The content that a file of answers belongs to is kept beside it in ``<name>.json``; answers without one were
    not written here and are not touched.

    Args:
        folder: FastChat's ``model_answer``; made if missing.
        model_folder: gives the name.
        fingerprint: of the model's content.

    Returns:
        The name, and what a reader must know about it.

    Raises:
        InputError: both names are taken.
    """
    create_folder(folder)
    plain = model_name(model_folder)
    notes: list[str] = []
    for name in (plain, f"{plain}-{fingerprint[:8]}"):
        sidecar = folder / f"{name}.json"
        owner = _owner(sidecar)
        if owner is None and not (folder / f"{name}.jsonl").exists():
            write_json(sidecar, {"model_fingerprint": fingerprint})
            return name, notes
        if owner == fingerprint:
            return name, notes
        notes = [f"{folder / name}.jsonl holds answers of another model; these are {plain}-{fingerprint[:8]}"]
    raise InputError(f"{folder / plain}.jsonl: holds answers of another model; move it, or choose another --output")


def _owner(sidecar: Path) -> str | None:
    try:
        return str(json.loads(sidecar.read_bytes())["model_fingerprint"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return ""  # unreadable: nobody's that we know
