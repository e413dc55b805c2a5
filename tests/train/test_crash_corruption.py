"""2,000 random corruptions of checkpoint files, all found before a byte of them is parsed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_harness import ask, content, seeded

from sengi import storage
from sengi.errors import CheckpointError
from sengi.train import checkpoint
from sengi.train.distributed import World

PARTS, EACH = 8, 250
ALONE = World(0, 1, torch.device("cpu"))
META = (storage.MANIFEST, storage.SEAL)


@cache
def original() -> Path:
    """A run with the checkpoints 2 and 3."""
    return Path(ask("two_checkpoints"))


class Spoiler:
    """Changes a checkpoint folder in one way; each method returns the names that an error may mention."""

    def __init__(self, folder: Path, other: Path, draw: random.Random) -> None:
        self.folder, self.other, self.draw = folder, other, draw

    def _pick(self) -> tuple[Path, bytes]:
        path = self.draw.choice(sorted(p for p in self.folder.rglob("*") if p.is_file()))
        return path, path.read_bytes()

    def _change(self, path: Path, data: bytes) -> list[str]:
        assert data != path.read_bytes()
        path.write_bytes(data)
        return [path.name, storage.MANIFEST] if path.name in META else [path.name]

    def flipped_bit(self) -> list[str]:
        path, data = self._pick()
        at = self.draw.randrange(len(data))
        return self._change(path, data[:at] + bytes([data[at] ^ 1 << self.draw.randrange(8)]) + data[at + 1 :])

    def changed_byte(self) -> list[str]:
        path, data = self._pick()
        at = self.draw.randrange(len(data))
        return self._change(path, data[:at] + bytes([(data[at] + self.draw.randrange(1, 256)) % 256]) + data[at + 1 :])

    def zeroed_block(self) -> list[str]:
        path, data = self._pick()
        at = self.draw.randrange(0, len(data), 4096)
        size = min(4096, len(data) - at)
        if not any(data[at : at + size]):
            return self.flipped_bit()
        return self._change(path, data[:at] + bytes(size) + data[at + size :])

    def truncated(self) -> list[str]:
        path, data = self._pick()
        return self._change(path, data[: self.draw.randrange(len(data))])

    def extended(self) -> list[str]:
        path, data = self._pick()
        return self._change(path, data + self.draw.randbytes(self.draw.choice([1, 7, 4096])))

    def swapped_files(self) -> list[str]:
        (one, first), (two, second) = self._pick(), self._pick()
        if first == second:
            return self.flipped_bit()
        return self._change(one, second) + self._change(two, first) + [storage.MANIFEST]

    def from_another_step(self) -> list[str]:
        path, data = self._pick()
        older = (self.other / path.relative_to(self.folder)).read_bytes()
        return self.flipped_bit() if older == data else self._change(path, older)

    def missing(self) -> list[str]:
        path, _ = self._pick()
        path.unlink()
        return [path.name, "no manifest"]

    def missing_folder(self) -> list[str]:
        shutil.rmtree(self.folder / checkpoint.STATE)
        return [checkpoint.STATE]

    def extra_entry(self) -> list[str]:
        name = self.draw.choice(["pytorch_model.bin", "training_state/rank-00000-00009.safetensors", ".hidden", "more"])
        path = self.folder / name
        kind = self.draw.choice(["file", "folder", "link to a folder", "fifo"])
        if kind == "file":
            path.write_bytes(self.draw.randbytes(100))
        elif kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(self.other)
        return [path.name]

    def changed_manifest(self) -> list[str]:
        path = self.folder / self.draw.choice(META)
        at = self.draw.randrange(path.stat().st_size)
        data = path.read_bytes()
        return self._change(path, data[:at] + bytes([data[at] ^ 1 << self.draw.randrange(8)]) + data[at + 1 :])

    def stale_manifest(self) -> list[str]:
        for name in META:  # a true pair, of another step
            shutil.copy(self.other / name, self.folder / name)
        return [""]

    def symlink(self) -> list[str]:
        path, data = self._pick()
        target = self.folder.parent / f"elsewhere-{path.name}"
        target.write_bytes(data)
        path.unlink()
        path.symlink_to(target)
        return [path.name]

    def fifo(self) -> list[str]:
        path, _ = self._pick()
        path.unlink()
        os.mkfifo(path)
        return [path.name, "no manifest"]

    def renamed_checkpoint(self) -> list[str]:
        shutil.rmtree(self.folder)
        shutil.copytree(self.other, self.folder)
        return ["holds step 2"]

    def linked_checkpoint(self) -> list[str]:
        self.folder.rename(self.folder.parent / "moved")
        self.folder.symlink_to("moved")
        return ["a link"]


KINDS: list[Callable[[Spoiler], list[str]]] = [
    value for name, value in vars(Spoiler).items() if not name.startswith("_")
]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What json.loads was given; reading tensors or loading a checkpoint fails the test."""
    given: list[bytes] = []
    loads = json.loads

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("content was parsed before it was verified")

    def record(text: bytes, **more: Any) -> Any:
        given.append(text)
        return loads(text, **more)

    monkeypatch.setattr(checkpoint, "safe_open", refuse)
    monkeypatch.setattr(checkpoint, "load", refuse)
    monkeypatch.setattr(json, "loads", record)
    return given


@pytest.mark.parametrize("part", range(PARTS))
def test_every_corruption_is_found_and_survived(part: int, tmp_path: Path, parsed: list[bytes]) -> None:
    draw = random.Random(seeded(part))
    newest, older = original() / "checkpoint-3", original() / "checkpoint-2"
    true_manifests = {(folder / storage.MANIFEST).read_bytes() for folder in (newest, older)}
    before = content(older)
    shutil.copytree(older, tmp_path / "run" / older.name)
    for number in range(EACH):
        kind = KINDS[number % len(KINDS)]
        run = tmp_path / "run"
        shutil.copytree(newest, run / newest.name)
        parsed.clear()
        names = kind(Spoiler(run / newest.name, run / older.name, draw))
        where = f"{kind.__name__} {number}"
        said: list[str] = []
        found = checkpoint.newest_valid(run, ALONE, said.append)
        # It falls back to the checkpoint before, which is untouched, says so, and keeps the bad one.
        assert found is not None, where
        assert (found[0], found[1]["step"]) == (run / older.name, 2), where
        assert len(said) == 1, where
        assert "falling back to the one before" in said[0], where
        assert any(name in said[0] for name in names), (where, said)
        assert len(list(run.glob(".quarantine-checkpoint-3-*"))) == 1, where
        assert content(run / older.name) == before, where
        # Nothing was parsed but manifests that agree with their seal.
        assert set(parsed) <= true_manifests, where
        for path in set(run.iterdir()) - {run / older.name}:
            path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)


# verify itself names the file, too; what newest_valid adds is only the fallback.
def test_verify_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(original() / "checkpoint-3", folder)
    assert storage.verify(folder)["step"] == 3
    path = folder / checkpoint.STATE / "rank-00000-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"rank-00000-00001.safetensors: the content changed since it was saved"):
        storage.verify(folder)


# With nothing to fall back to the run stops; starting over is the user's choice.
def test_no_good_checkpoint_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (2, 3):
        shutil.copytree(original() / f"checkpoint-{step}", run / f"checkpoint-{step}")
        (run / f"checkpoint-{step}" / "config.json").write_text("{}")
    said: list[str] = []
    for _ in range(2):  # also for a job that restarts by itself
        with pytest.raises(CheckpointError, match="no other checkpoint is left: restore one, or remove"):
            checkpoint.newest_valid(run, ALONE, said.append)
    assert len(said) == 2
    assert len(list(run.glob(".quarantine-*"))) == 2
