"""A token store whose build was stopped: the next request goes on, and the store is that of an unbroken build."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.model.tiny_folder import write_tiny_folder as write_model

from sengi.data import store_build, store_workers, store_write
from sengi.data.store import StoreOptions, TokenStore
from sengi.data.store_build import open_store
from sengi.data.store_write import Writer
from sengi.errors import DataError
from sengi.masks.batch import Block, QuickMismatch
from sengi.masks.masker import Masker
from sengi.model.load import load_tokenizer
from sengi.recipe import DataEntry

OPTIONS = StoreOptions(96, "drop")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("resume") / "model")


@pytest.fixture(autouse=True)
def small_batches(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_workers, "BATCH", 4)
    monkeypatch.setattr(store_write, "SAVE_SECONDS", 0.0)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def data(folder: Path) -> list[DataEntry]:
    """Three kinds of files with rows that are dropped, repaired and blank among them."""
    rows = [chat(f"What is {n}?", f"It is {n}.") for n in range(13)]
    rows[2] = {"messages": [{"role": "user", "content": "no answer"}]}
    rows[5] = chat("a <|im_end|> in the text", "yes")
    rows[7] = chat("long?", "word " * 200)
    (folder / "a.jsonl").write_text("\n" + "\n \n".join(json.dumps(row) for row in rows) + "\n")
    with (folder / "b.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("instruction", "output"), *((f"Say {n}", f"{n}") for n in range(6))])
    pq.write_table(
        pa.Table.from_pylist([chat(f"Why {n}?", "So.") for n in range(9)]), folder / "c.parquet", row_group_size=4
    )
    return [DataEntry(path=str(folder / name)) for name in ("a.jsonl", "b.csv", "c.parquet")]


def contents(store: TokenStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.path.iterdir()}


def unbroken(entries: list[DataEntry], model: Path, elsewhere: Path) -> dict[str, bytes]:
    """The store built in one go, and out of the way again."""
    store = open_store(entries, load_tokenizer(model), OPTIONS)
    store.path.rename(elsewhere)
    return contents(TokenStore(elsewhere))


def stop_in(monkeypatch: pytest.MonkeyPatch, call: int, before: bool) -> None:
    """Ctrl-C in the given call of `Writer.add_batch`, before or after it."""
    add_batch, calls = Writer.add_batch, 0

    def stopped(self: Writer, batch: Any, block: Block) -> None:
        nonlocal calls
        calls += 1
        if not (calls == call and before):
            add_batch(self, batch, block)
        if calls == call:
            raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "add_batch", stopped)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("call", range(1, 8))
def test_a_stopped_build_goes_on(
    call: int, before: bool, tmp_path: Path, model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = data(tmp_path)
    wanted = unbroken(entries, model, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_in(patch, call, before)
        with pytest.raises(KeyboardInterrupt):
            open_store(entries, load_tokenizer(model), OPTIONS)
    (left,) = own_cache.glob("tokens/.tmp-*")
    for name in ("ids.bin", "mask.bin", "index.bin", "dropped.jsonl"):  # what a crash may leave behind the last save
        with (left / name).open("ab") as file:
            file.write(b"torn")
    read: list[int] = []
    prepare = Masker.prepare
    monkeypatch.setattr(
        Masker, "prepare", lambda self, rows: read.extend(row.row for row in rows) or prepare(self, rows)
    )
    told: list[tuple[int, float]] = []
    store = open_store(entries, load_tokenizer(model), OPTIONS, progress=lambda *state: told.append(state))
    assert contents(store) == wanted
    assert told[-1] == (28, 1.0)
    # rows that were saved are not made again: one of the 28 has no answer, and 4 are in a batch
    assert len(read) == 27 - max(0, 4 * (call - 1) - 1)
    assert list(own_cache.glob("tokens/.tmp-*")) == []


def test_a_build_killed_by_the_system_goes_on(tmp_path: Path, model: Path, own_cache: Path) -> None:
    entries = data(tmp_path)
    wanted = unbroken(entries, model, tmp_path / "whole")
    code = f"""
import os, signal
from pathlib import Path
from sengi.data import store_workers, store_write
from sengi.data.store import StoreOptions
from sengi.data.store_build import open_store
from sengi.model.load import load_tokenizer
from sengi.recipe import DataEntry
store_workers.BATCH, store_write.SAVE_SECONDS = 4, 0.0
def told(rows, share):
    if rows >= 12:
        os.kill(os.getpid(), signal.SIGKILL)
entries = [DataEntry(path=path) for path in {[entry.path for entry in entries]!r}]
open_store(entries, load_tokenizer(Path({str(model)!r})), StoreOptions(96, "drop"), progress=told)
"""
    killed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "SENGI_CACHE": str(own_cache)}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = own_cache.glob("tokens/.tmp-*")
    assert json.loads((left / "progress.json").read_text())["rows"] == 12
    assert contents(open_store(entries, load_tokenizer(model), OPTIONS)) == wanted


def shorten(left: Path) -> None:
    os.truncate(left / "ids.bin", 3)


def garble(left: Path) -> None:
    (left / "progress.json").write_text('{"rows": 8')


def outdate(left: Path) -> None:
    (left / "progress.json").write_text('{"of_another_version": 8}')


@pytest.mark.parametrize("damage", [shorten, garble, outdate])
def test_what_cannot_be_gone_on_from_is_begun_anew(
    damage: Callable[[Path], None], tmp_path: Path, model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = data(tmp_path)
    wanted = unbroken(entries, model, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_in(patch, 3, before=True)
        with pytest.raises(KeyboardInterrupt):
            open_store(entries, load_tokenizer(model), OPTIONS)
    damage(next(own_cache.glob("tokens/.tmp-*")))
    assert contents(open_store(entries, load_tokenizer(model), OPTIONS)) == wanted


def test_the_full_way_is_kept_to_when_going_on(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rule: rows after a stop are made in the same way as those before it.
    entries = data(tmp_path)
    wanted = unbroken(entries, model, tmp_path / "whole")

    def mismatch(*_: object) -> None:
        raise QuickMismatch("a.jsonl:1")

    monkeypatch.setattr(Masker, "_compare_some", mismatch)
    with monkeypatch.context() as patch:
        stop_in(patch, 3, before=True)
        with pytest.raises(KeyboardInterrupt):
            open_store(entries, load_tokenizer(model), OPTIONS)
    quick: list[bool] = []
    prepare = Masker.prepare
    monkeypatch.setattr(Masker, "prepare", lambda self, rows: quick.append(self.settings[1]) or prepare(self, rows))
    assert contents(open_store(entries, load_tokenizer(model), OPTIONS)) == wanted
    assert set(quick) == {False}


def test_an_error_leaves_nothing(tmp_path: Path, model: Path, own_cache: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(chat(f"{n}?", "a")) for n in range(9)) + '\n{"messages": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:10"):
        open_store([DataEntry(path=str(path))], load_tokenizer(model), OPTIONS)
    assert list((own_cache / "tokens").iterdir()) == []


def test_a_second_process_waits_for_the_first(
    tmp_path: Path, model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = data(tmp_path)
    whole = open_store(entries, load_tokenizer(model), OPTIONS)
    target = whole.path
    building = target.with_name(f".tmp-{target.name}")
    target.rename(building)  # as if the first were about to finish it
    first = os.open(building, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    waits, found = threading.Event(), []
    monkeypatch.setattr(store_build._log, "warning", lambda *_: waits.set())
    monkeypatch.setattr(store_build, "blocks", None)  # the second must not build
    second = threading.Thread(target=lambda: found.append(open_store(entries, load_tokenizer(model), OPTIONS).path))
    second.start()
    assert waits.wait(60)
    building.rename(target)
    os.close(first)
    second.join(60)
    assert found == [target]
    assert list(own_cache.glob("tokens/.tmp-*")) == []


def test_parquet_shards_give_the_store_of_the_same_rows_as_jsonl(tmp_path: Path, model: Path) -> None:
    rows = [chat(f"What is {n}?", f"It is {n}.") for n in range(40)]
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        table = pa.Table.from_pylist(rows[shard * 10 : shard * 10 + 10])
        pq.write_table(table, tmp_path / "shards" / f"part-{shard}.parquet", row_group_size=3)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = open_store([DataEntry(path=str(tmp_path / "shards"))], load_tokenizer(model), OPTIONS)
    two = open_store([DataEntry(path=str(tmp_path / "rows.jsonl"))], load_tokenizer(model), OPTIONS)
    assert len(one.meta["files"]) == 4
    for name in ("ids.bin", "mask.bin"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    np.testing.assert_array_equal(one.lengths, two.lengths)
