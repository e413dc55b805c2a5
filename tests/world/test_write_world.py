from __future__ import annotations

import errno
import hashlib
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from generated_worlds import PHASES, Written, read_lines

from sengi.errors import InputError, StorageError
from sengi.world.write import write_world

FILES = [f"train/{phase}.jsonl" for phase in PHASES] + [
    f"eval/{name}.jsonl" for name in ("choice", "answer", "heldout")
]


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_the_bytes_follow_from_samples_and_seed(tmp_path: Path) -> None:
    for name, samples, seed in (("a", 150, 4), ("b", 150, 4), ("c", 150, 5), ("d", 151, 4)):
        write_world(tmp_path / name, samples, seed)
    a, b, c, d = (contents(tmp_path / name) for name in "abcd")
    assert a == b
    assert sorted(a) == sorted([*FILES, "world.json"])
    assert all(a[name] != c[name] for name in FILES)
    assert a["train/knowledge.jsonl"] != d["train/knowledge.jsonl"]


def test_the_bytes_are_those_of_every_other_machine(tmp_path: Path) -> None:
    # Whoever changes the worlds on purpose raises FORMAT_VERSION and writes the new digest here.
    write_world(tmp_path / "w", 300, 1)
    digest = hashlib.sha256(b"".join(contents(tmp_path / "w").values())).hexdigest()
    assert digest[:16] == "b85ffa4f441f85ad"


@pytest.mark.parametrize("samples", [100, 101, 137, 999, 1_000, 1_001])
def test_exactly_the_samples_asked_for(samples: int, tmp_path: Path) -> None:
    summary = write_world(tmp_path / "w", samples, 9)
    rows = [row for phase in PHASES for row in read_lines(tmp_path / "w" / "train" / f"{phase}.jsonl")]
    assert len(rows) == samples == sum(summary.rows[f"train/{phase}.jsonl"] for phase in PHASES)
    assert len({row["id"] for row in rows}) == samples


def test_summary_and_description_count_what_is_there(written: Written) -> None:
    for name in FILES:
        assert len(read_lines(written.out / name)) == written.summary.rows[name] == written.description["rows"][name]
    groups = Counter(fact["group"] for fact in written.description["facts"])
    assert groups == {"taught": written.summary.taught, "control": written.summary.control}
    assert written.description["samples"] == written.summary.samples
    assert written.description["seed"] == written.summary.seed


def test_rows_have_the_documented_form(written: Written) -> None:
    for row in [*written.rows(), *written.heldout]:
        assert list(row) == ["messages", "id", "source", "phase", "topic"]
        roles = [m["role"] for m in row["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert 1 <= len(turns) // 2 <= 3
        assert all(m["content"].strip() == m["content"] != "" for m in row["messages"])
        assert "{" not in row["messages"][0]["content"]
    for phase in PHASES:
        assert {row["phase"] for row in written.train[phase]} == {phase}


def test_some_rows_have_several_turns_and_some_a_system_message(written: Written) -> None:
    for phase in PHASES:
        rows = written.train[phase]
        several = sum(sum(m["role"] == "user" for m in row["messages"]) > 1 for row in rows)
        assert 0.03 <= several / len(rows) <= 0.35, phase
    assert any(row["messages"][0]["role"] == "system" for row in written.rows())
    if written.summary.samples >= 1_000:
        assert any(sum(m["role"] == "user" for m in row["messages"]) == 3 for row in written.train["knowledge"])


@pytest.mark.parametrize("samples", [200, 1_000, 20_000])
def test_hardly_any_row_is_there_twice(samples: int, tmp_path: Path) -> None:
    write_world(tmp_path / "w", samples, 3)
    seen = Counter(
        json.dumps(row["messages"])
        for phase in PHASES
        for row in read_lines(tmp_path / "w" / "train" / f"{phase}.jsonl")
    )
    assert samples - len(seen) < samples / 100


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    tracemalloc.start()
    summary = write_world(tmp_path / "w", 20_000, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    written = sum((tmp_path / "w" / name).stat().st_size for name in summary.rows)
    assert peak < written / 2


def test_progress_counts_up_to_the_samples(tmp_path: Path) -> None:
    told: list[int] = []
    write_world(tmp_path / "w", 2_500, 3, progress=told.append)
    assert told == [1_000, 2_000, 2_500]


def test_an_existing_folder_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_world(tmp_path / "empty", 100, 0)
    before = contents(tmp_path / "empty")
    with pytest.raises(InputError, match="not an empty folder; choose another folder"):
        write_world(tmp_path / "empty", 100, 1)
    assert contents(tmp_path / "empty") == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file: exists and is not an empty folder"):
        write_world(tmp_path / "file", 100, 0)
    with pytest.raises(InputError, match=r"cannot be made a folder .*choose another folder"):
        write_world(tmp_path / "file" / "below", 100, 0)


def test_bad_numbers_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--seed -1"):
        write_world(tmp_path / "w", 100, -1)
    with pytest.raises(InputError, match="--samples 99"):
        write_world(tmp_path / "w", 99, 1)
    assert not (tmp_path / "w").exists()


def test_a_full_disk_is_named_and_leaves_no_complete_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "answer.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StorageError, match=r"answer\.jsonl: could not be written \(No space left on device\)"):
        write_world(tmp_path / "w", 100, 1)
    assert not (tmp_path / "w" / "world.json").exists()
