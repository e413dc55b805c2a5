"""The storage module by itself; tests/train/test_crash_*.py put faults on it while a run uses it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sengi import storage
from sengi.disk import disk, explained
from sengi.errors import CheckpointError, InputError, StorageError


@pytest.fixture(autouse=True)
def _no_fault_stays() -> Iterator[None]:
    yield
    disk.fault = None


def publish(folder: Path, files: dict[str, bytes], **facts: object) -> Path:
    stage = storage.begin(folder)
    for name, data in files.items():
        stage.write(name, data)
    storage.publish(stage, folder, facts)
    return folder


def fail(name: str, number: int = errno.ENOSPC) -> None:
    """Let every call of that name fail."""

    def fault(called: str, count: int, path: Path) -> None:
        if called == name:
            raise OSError(number, os.strerror(number))

    disk.fault = fault


def test_write_file_replaces_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    storage.write_json(path, {"a": 1})
    storage.write_json(path, {"a": "ä"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ä"}
    assert os.listdir(tmp_path) == ["status.json"]


# The new bytes are on the device before the name points at them, and the name before write_file returns.
def test_write_file_syncs_in_order(tmp_path: Path) -> None:
    calls: list[str] = []
    disk.fault = lambda name, number, path: calls.append(name)
    storage.write_file(tmp_path / "a", b"x")
    assert calls == ["open", "write", "fsync", "rename", "open", "fsync"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_failed_write_keeps_the_old_file(tmp_path: Path, call: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    fail(call)
    with pytest.raises(StorageError, match=r"a.json: writing 3 bytes failed: No space left .* GB free; free space"):
        storage.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "free space on this disk"),
        (errno.EDQUOT, "quota is full"),
        (errno.EROFS, "choose another output_dir"),
        (errno.EACCES, "change its owner"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "check the disk"),
        (77, "check the disk"),
    ],
)
def test_each_error_names_its_cure(tmp_path: Path, number: int, cure: str) -> None:
    with pytest.raises(StorageError, match=cure) as caught, explained(tmp_path / "file", "reading"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: reading failed: {os.strerror(number)}")
    assert "\n" not in str(caught.value)


@given(st.binary(min_size=1, max_size=50), st.lists(st.integers(1, 9), max_size=20))
def test_short_writes_are_continued(data: bytes, cuts: list[int]) -> None:
    left = iter(cuts)
    disk.fault = lambda name, number, path: next(left, None) if name == "write" else None
    with tempfile.TemporaryDirectory() as folder:
        storage.write_file(Path(folder) / "a", data)
        disk.fault = None
        assert (Path(folder) / "a").read_bytes() == data


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    log = storage.AppendLog(tmp_path / "log")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"loss": float("nan")})
    assert (tmp_path / "log").read_bytes() == b""


# Cut anywhere, the log gives back exactly the whole lines, and goes on behind them.
@given(st.lists(st.text(max_size=8), min_size=1, max_size=6), st.data())
def test_torn_line_is_dropped_and_cut(texts: list[str], data: st.DataObject) -> None:
    lines = [(json.dumps({"text": text}, ensure_ascii=False) + "\n").encode() for text in texts]
    whole = b"".join(lines)
    size = data.draw(st.integers(0, len(whole)))
    ends = [len(b"".join(lines[:count])) for count in range(len(lines) + 1)]
    kept = sum(end <= size for end in ends) - 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(whole[:size])
        assert storage.read_lines(path) == [{"text": text} for text in texts[:kept]]
        log = storage.AppendLog(path)
        assert log.torn_bytes == size - ends[kept]
        log.append({"text": "next"})
        log.sync()
        log.close()
        assert [line["text"] for line in storage.read_lines(path)] == [*texts[:kept], "next"]


def test_long_torn_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n' + b"x" * 200_000)
    assert storage.AppendLog(path).torn_bytes == 200_000
    assert path.read_bytes() == b'{"a": 1}\n'


def test_changed_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(StorageError, match=r"log:2: not a JSON line"):
        storage.read_lines(path)
    path.write_bytes(b"1\n")
    with pytest.raises(StorageError, match=r"log:1: not a JSON line"):
        storage.read_lines(path)


def test_missing_log_is_empty(tmp_path: Path) -> None:
    assert storage.read_lines(tmp_path / "none") == []


# Files, then manifest, then seal, each flushed; the folders; the rename; the parent. Only then does it return.
def test_publish_in_order(tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []
    disk.fault = lambda name, number, path: calls.append((name, path.name))
    publish(tmp_path / "checkpoint-1", {"a": b"1", "state/b": b"2"})
    synced = [name for call, name in calls if call == "fsync"]
    temporary = calls[0][1]
    assert synced[:4] == ["a", "b", storage.MANIFEST, storage.SEAL]
    assert set(synced[4:6]) == {temporary, "state"}
    assert calls[-3:] == [("rename", "checkpoint-1"), ("open", tmp_path.name), ("fsync", tmp_path.name)]


def test_verify_returns_the_facts(tmp_path: Path) -> None:
    manifest = storage.verify(publish(tmp_path / "checkpoint-7", {"a": b"1", "state/b": b""}, step=7))
    assert manifest["step"] == 7
    assert manifest["files"]["a"] == {"sha256": hashlib.sha256(b"1").hexdigest(), "size": 1}
    assert list(manifest["files"]) == ["a", "state/b"]


def test_published_folder_is_never_overwritten(tmp_path: Path) -> None:
    folder = publish(tmp_path / "checkpoint-1", {"a": b"1"})
    with pytest.raises(InputError, match="exists already and is never overwritten"):
        storage.begin(folder)


# A pair that agrees but is no manifest cannot come from a crash; it must still end in one line.
@pytest.mark.parametrize(
    "manifest", [b"", b"{", b"[]", b"{}", b'{"files": 1}', b'{"files": {"a": {}}}', b'{"files": {"a": 1}}', b"\xff"]
)
def test_forged_manifest_is_refused(tmp_path: Path, manifest: bytes) -> None:
    folder = publish(tmp_path / "checkpoint-1", {"a": b"1"})
    (folder / storage.MANIFEST).write_bytes(manifest)
    (folder / storage.SEAL).write_text(f"{hashlib.sha256(manifest).hexdigest()}  {storage.MANIFEST}\n")
    with pytest.raises(CheckpointError, match=r"manifest.json: not a manifest of Sengi"):
        storage.verify(folder)


# A manifest may not point outside of its folder, whatever it says about the file there.
@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "state/../../outside", "."])
def test_manifest_cannot_name_files_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_bytes(b"1")
    folder = publish(tmp_path / "checkpoint-1", {"a": b"1"})
    record = {"sha256": hashlib.sha256(b"1").hexdigest(), "size": 1}
    data = json.dumps({"files": {"a": record, name: record}}).encode()
    (folder / storage.MANIFEST).write_bytes(data)
    (folder / storage.SEAL).write_text(f"{hashlib.sha256(data).hexdigest()}  {storage.MANIFEST}\n")
    with pytest.raises(CheckpointError, match="missing"):
        storage.verify(folder)


def test_published_lists_by_number(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-x", ".quarantine-checkpoint-11-ab", "checkpoint-12-old"):
        (tmp_path / name).mkdir()
    assert [path.name for path in storage.published(tmp_path, "checkpoint-")] == ["checkpoint-9", "checkpoint-10"]


# A run folder that vanished is one line, too.
@pytest.mark.parametrize("work", [lambda path: storage.published(path, "checkpoint-"), storage.sweep])
def test_missing_run_folder_is_explained(tmp_path: Path, work: object) -> None:
    assert callable(work)
    with pytest.raises(StorageError, match=r"gone: .* failed: No such file or directory"):
        work(tmp_path / "gone")


# A checkpoint moved to another disk and linked here is not ours to empty.
@pytest.mark.parametrize("how", ["remove", "sweep"])
def test_links_are_removed_and_what_they_point_at_is_not(tmp_path: Path, how: str) -> None:
    elsewhere = publish(tmp_path / "elsewhere", {"a": b"1"})
    run = tmp_path / "run"
    run.mkdir()
    link = run / ("checkpoint-1" if how == "remove" else ".trash-checkpoint-1-0123abcd")
    link.symlink_to(elsewhere)
    if how == "remove":
        storage.remove(link)
    else:
        storage.sweep(run)
    assert os.listdir(run) == []
    assert storage.verify(elsewhere)


def test_sweep_takes_left_overs_only(tmp_path: Path) -> None:
    publish(tmp_path / "checkpoint-1", {"a": b"1"})
    storage.begin(tmp_path / "checkpoint-2").write("state/b", b"2")
    storage.remove(publish(tmp_path / "checkpoint-0", {"a": b"1"}))
    for name in (".status.json.0123abcd.tmp", ".trash-checkpoint-3-0123abcd", ".quarantine-x", ".mine", "status.json"):
        (tmp_path / name).write_bytes(b"")
    assert len(storage.sweep(tmp_path)) == 3
    assert sorted(os.listdir(tmp_path)) == [".mine", ".quarantine-x", "checkpoint-1", "status.json"]


def test_second_process_is_turned_away_and_a_dead_one_forgotten(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from sengi import storage\n"
        "with storage.lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} is already working on this run"):
            storage.lock(tmp_path).__enter__()
    finally:
        holder.kill()
        holder.wait()
    with storage.lock(tmp_path):
        assert (tmp_path / "run.lock").read_text() == str(os.getpid())


def test_create_folder_makes_parents_and_syncs_them(tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []
    disk.fault = lambda name, number, path: calls.append((name, path.name))
    storage.create_folder(tmp_path / "a" / "b")
    assert [call for call in calls if call[0] != "open"] == [
        ("mkdir", "a"),
        ("fsync", tmp_path.name),
        ("mkdir", "b"),
        ("fsync", "a"),
    ]
    storage.create_folder(tmp_path / "a" / "b")
    fail("mkdir", errno.EACCES)
    with pytest.raises(StorageError, match="making the folder failed: Permission denied"):
        storage.create_folder(tmp_path / "c")
