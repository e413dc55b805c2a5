"""Answers of a model on disk, so that an interrupted evaluation continues where it stopped.

One folder a model (its content, number type and versions of the engine, hashed), one append-only file a process in
it. A line is one answer: the SHA-256 of what was asked (kind, token ids, generation arguments, model), the answer,
and a checksum of both. A line that does not agree with its checksum is never used: it is counted and asked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sengi import __version__
from sengi.disk import explained
from sengi.errors import StorageError
from sengi.storage import AppendLog, create_folder, write_json

CHECK_DIGITS = 16  # of SHA-256: a damaged line passes with a chance of 2^-64


def engine_version() -> dict[str, str]:
    """Versions of what computes an answer; another one of them may round another way."""
    found = {"sengi": __version__}
    for name in ("torch", "transformers", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def request_key(
    model: Mapping[str, Any], kind: str, tokens: Sequence[Sequence[int]], arguments: Mapping[str, Any]
) -> str:
    """The name of one question to one model.

    Args:
        model: JSON facts that tell the model apart.
        kind: ``loglikelihood`` or ``generate``.
        tokens: the token ids, in parts (context and continuation, or the prompt alone).
        arguments: generation arguments, JSON.

    Returns:
        64 hexadecimal digits.
    """
    head = json.dumps([model, kind, arguments, [len(part) for part in tokens]], sort_keys=True)
    digest = hashlib.sha256(head.encode())
    for part in tokens:
        digest.update(np.asarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()


class ResponseCache:
    """The known answers of one model.

    Several evaluations may use one cache at the same time: a line that they spoil for each other does not agree with
    its checksum.

    Args:
        root: folder of caches; the model gets a folder of its own in it.
        model: JSON facts that tell the model apart (fingerprint, number type, versions).
        rank: number of this process; each writes its own file and all are read.

    Attributes:
        folder: where the answers of this model lie.
        damaged: lines that the last look did not use because they do not agree with their checksum.
    """

    def __init__(self, root: Path, model: Mapping[str, Any], rank: int = 0) -> None:
        name = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(root) / name
        self.damaged = 0
        self._model = dict(model)
        self._rank = rank
        self._log: AppendLog | None = None

    def known(self, keys: Collection[str]) -> dict[str, Any]:
        """The answers to those questions that are known.

        Args:
            keys: names from :func:`request_key`.
        """
        found: dict[str, Any] = {}
        self.damaged = 0
        for path in sorted(self.folder.glob("answers-*.jsonl")):
            with explained(path, "reading"):
                *lines, _torn = path.read_bytes().split(b"\n")
            for line in lines:
                try:
                    value = json.loads(line)
                    whole = value["check"] == _check(value["key"], value["answer"])
                except (ValueError, TypeError, KeyError):
                    whole = False
                if not whole:
                    self.damaged += 1
                elif value["key"] in keys:
                    found[value["key"]] = value["answer"]
        if self.damaged:
            logging.getLogger(__name__).warning(
                f"{self.folder}: {self.damaged} damaged lines are not used, their questions are asked again"
            )
        return found

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Take new answers until the end of the block; a line that a crash left half written is cut off first."""
        create_folder(self.folder)
        if self._rank == 0 and not (self.folder / "model.json").exists():
            write_json(self.folder / "model.json", self._model)  # for people: whose answers these are
        self._log = AppendLog(self.folder / f"answers-{self._rank}.jsonl")
        try:
            yield
            self._log.sync()
        finally:
            self._log.close()
            self._log = None

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer (JSON, without NaN); it survives a killed process at once.

        Raises:
            StorageError: it cannot be written (disk full), or this is not inside ``writing()``.
        """
        if self._log is None:
            raise StorageError(f"{self.folder}: an answer came outside writing(); this is a mistake in Sengi")
        self._log.append({"key": key, "answer": answer, "check": _check(key, answer)})


def _check(key: str, answer: Any) -> str:
    return hashlib.sha256(f"{key} {json.dumps(answer)}".encode()).hexdigest()[:CHECK_DIGITS]
