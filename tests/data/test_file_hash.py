from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sengi.data import file_hash as module
from sengi.data.file_hash import file_hash
from sengi.errors import DataError


@pytest.fixture
def hashed(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were really hashed; any size and age is remembered."""
    names: list[str] = []
    digest = hashlib.file_digest

    def noted(file, name):
        names.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(module, "_WORTH_BYTES", 0)
    monkeypatch.setattr(module, "_SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(module.hashlib, "file_digest", noted)
    return names


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_is_hashed_once(tmp_path: Path, hashed: list[str]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    assert [file_hash(path), file_hash(path)] == [sha("one")] * 2
    assert hashed == ["a"]


def test_a_changed_file_is_hashed_again_whatever_its_time_stamp(tmp_path: Path, hashed: list[str]) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    file_hash(path)
    stat = path.stat()
    path.write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time of change, same place
    assert file_hash(path) == sha("two")


def test_what_changed_just_now_and_what_is_small_is_not_remembered(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_SETTLED_SECONDS", 60.0)
        file_hash(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_WORTH_BYTES", 100)
        file_hash(path)
    file_hash(path)
    assert len(hashed) == 3


def test_a_torn_memory_is_not_believed(tmp_path: Path, hashed: list[str], own_cache: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    file_hash(path)
    (known,) = (own_cache / "hashes").iterdir()
    known.write_text(sha("one")[:20])
    assert file_hash(path) == sha("one")


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, hashed: list[str], own_cache: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    own_cache.write_text("a file where the folder should be")
    assert file_hash(path) == sha("one")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        file_hash(tmp_path / "nowhere")
