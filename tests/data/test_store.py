from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.model.tiny_folder import tiny_tokenizer
from tests.model.tiny_folder import write_tiny_folder as write_model

from sengi.cache import cache_folder
from sengi.data import store as store_module
from sengi.data import store_build, store_workers
from sengi.data.formats import read_conversations
from sengi.data.store import StoreOptions, TokenStore
from sengi.data.store_build import open_store
from sengi.errors import DataError
from sengi.masks.batch import QuickMismatch
from sengi.masks.masker import Masker
from sengi.model.load import load_tokenizer
from sengi.recipe import DataEntry

OPTIONS = StoreOptions(max_length=96, overlong="drop")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("store") / "model")


@pytest.fixture(autouse=True)
def _cache(own_cache: Path) -> Iterator[None]:
    yield
    # whatever happened, nothing half-built is left behind
    assert list(own_cache.glob("tokens/.tmp-*")) == []


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def write(path: Path, rows: list[dict[str, Any]]) -> DataEntry:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataEntry(path=str(path))


def many(count: int, word: str = "number") -> list[dict[str, Any]]:
    return [chat(f"What is {word} {n}?", f"{word} " * (n % 7 + 1) + str(n)) for n in range(count)]


def drops(store: TokenStore) -> list[dict[str, str]]:
    return [json.loads(line) for line in (store.path / "dropped.jsonl").read_text().splitlines()]


def contents(store: TokenStore) -> dict[str, bytes]:
    """All files of a store, but for what a different path would change."""
    return {path.name: path.read_bytes() for path in store.path.iterdir() if path.name != "index.npz"}


def test_content_is_what_the_masker_gives(tmp_path: Path, model: Path) -> None:
    entries = [
        write(tmp_path / "a.jsonl", [*many(5), {"text": "A dog barks."}]),
        write(tmp_path / "b.jsonl", many(4, "capital")).model_copy(update={"phase": "second"}),
        write(tmp_path / "c.jsonl", [chat("Hi?", "Yes.", phase="own", source="of the row")]),
    ]
    store = open_store(entries, load_tokenizer(model), OPTIONS)
    masker = Masker(load_tokenizer(model))
    rows = [row for entry in entries for row in read_conversations(Path(entry.path))]
    assert len(store) == len(rows) == 11
    for number, row in enumerate(rows):
        wanted = masker.sample(row)
        found = store.sample(number)
        np.testing.assert_array_equal(found.input_ids, wanted.input_ids)
        np.testing.assert_array_equal(found.loss_mask, wanted.loss_mask)
        assert found.input_ids.dtype == np.int32
        assert store.lengths[number] == len(wanted.input_ids)
        assert store.supervised[number] == wanted.num_supervised
        assert store.place(number) == row.place
    assert store.entry_counts == [6, 4, 1]
    assert [store.phase_names[p] for p in store.phase_of] == [""] * 6 + ["second"] * 4 + ["own"]
    assert [store.source_names[s] for s in store.source_of] == ["a"] * 6 + ["b"] * 4 + ["of the row"]
    np.testing.assert_array_equal(store.samples([3, 1])[1].input_ids, store.sample(1).input_ids)


def test_summary_adds_up(tmp_path: Path, model: Path) -> None:
    store = open_store(
        [write(tmp_path / "a.jsonl", many(9)), write(tmp_path / "b.jsonl", many(3))], load_tokenizer(model), OPTIONS
    )
    summary = store.summary()
    assert summary["samples"] == 12
    assert summary["tokens"] == int(store.lengths.sum())
    assert {name: value["samples"] for name, value in summary["sources"].items()} == {"a": 9, "b": 3}
    assert sum(value["supervised_tokens"] for value in summary["sources"].values()) == int(store.supervised.sum())
    assert sum(summary["length_histogram"]["counts"]) == 12
    assert list(summary["phases"]) == ["(none)"]


def test_supervised_tokens_are_counted_in_pieces(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store([write(tmp_path / "a.jsonl", many(9))], load_tokenizer(model), OPTIONS)
    for size in (1, 2, 4, 9, 100):
        monkeypatch.setattr(store_module, "_CHUNK", size)
        counted = TokenStore(store.path).supervised
        assert counted.tolist() == [sample.num_supervised for sample in store.samples(range(9))]


def test_a_second_request_opens_the_same_files(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = write(tmp_path / "a.jsonl", many(3))
    first = open_store([entry], load_tokenizer(model), OPTIONS)
    before = {path.name: path.stat().st_mtime_ns for path in first.path.iterdir()}

    def built_again(*_: object) -> None:
        raise AssertionError("the store was built again")

    monkeypatch.setattr(store_build, "blocks", built_again)
    second = open_store([entry], load_tokenizer(model), OPTIONS)
    assert second.path == first.path
    assert second.path.parent == cache_folder() / "tokens"
    assert {path.name: path.stat().st_mtime_ns for path in second.path.iterdir()} == before


def test_fingerprint_follows_everything_that_decides_the_content(tmp_path: Path, model: Path) -> None:
    entry = write(tmp_path / "a.jsonl", many(3))
    first = open_store([entry], load_tokenizer(model), OPTIONS).fingerprint
    # the same again, even for a copy of the model folder elsewhere, or touched files
    copy = shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "a.jsonl").touch()
    assert open_store([entry], load_tokenizer(copy), OPTIONS).fingerprint == first
    others = {
        "options": open_store([entry], load_tokenizer(model), StoreOptions(95, "drop")).fingerprint,
        "policy": open_store([entry], load_tokenizer(model), StoreOptions(96, "truncate")).fingerprint,
        "phase": open_store([entry.model_copy(update={"phase": "x"})], load_tokenizer(model), OPTIONS).fingerprint,
        "twice": open_store([entry, entry], load_tokenizer(model), OPTIONS).fingerprint,
    }
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("\n", "\n\n")
    tokenizer.save_pretrained(copy)
    others["template"] = open_store([entry], load_tokenizer(copy), OPTIONS).fingerprint
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["capital"])
    tokenizer.save_pretrained(copy)
    others["vocabulary"] = open_store([entry], load_tokenizer(copy), OPTIONS).fingerprint
    # one byte of the data, same length and same time stamp
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(text.replace("What", "Whet", 1))
    others["data"] = open_store([entry], load_tokenizer(model), OPTIONS).fingerprint
    assert len({first, *others.values()}) == 1 + len(others), others


def test_weights_do_not_make_another_store(tmp_path: Path, model: Path) -> None:
    entry = write(tmp_path / "a.jsonl", many(3))
    heavier = entry.model_copy(update={"weight": 2.5})
    assert (
        open_store([entry], load_tokenizer(model), OPTIONS).path
        == open_store([heavier], load_tokenizer(model), OPTIONS).path
    )


def rows_of_all_kinds() -> list[dict[str, Any]]:
    rows = many(60)
    rows[17] = {"messages": [{"role": "user", "content": "no answer"}]}
    rows[23] = chat("a <|im_end|> in the text", "yes")
    rows[29] = {"text": "A dog barks."}
    rows[41] = chat("long?", "word " * 200)
    return rows


def set_aside(store: TokenStore, folder: Path) -> TokenStore:
    """Move a store away, so that the next request builds it again."""
    folder.mkdir()
    return TokenStore(store.path.rename(folder / "store"))


def same(one: TokenStore, two: TokenStore) -> bool:
    for name in ("offsets", "file_of", "row_of", "source_of", "phase_of"):
        np.testing.assert_array_equal(one._index[name], two._index[name])
    return contents(one) == contents(two)


def test_several_processes_build_what_one_builds(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [write(tmp_path / "a.jsonl", rows_of_all_kinds()), write(tmp_path / "b.jsonl", many(13, "animal"))]
    alone = set_aside(open_store(entries, load_tokenizer(model), OPTIONS), tmp_path / "alone")
    by_the_parent: list[int] = []
    prepare = Masker.prepare

    def counted(self: Masker, rows: list[Any]) -> Any:
        by_the_parent.append(len(rows))
        return prepare(self, rows)

    class Started(ProcessPoolExecutor):
        """The parent works on while the processes start; here it waits for them."""

        def submit(self, work: Any, batch: Any) -> Any:
            future = super().submit(work, batch)
            if not batch:
                future.result()
            return future

    monkeypatch.setattr(Masker, "prepare", counted)
    monkeypatch.setattr(store_workers, "ProcessPoolExecutor", Started)
    monkeypatch.setattr(store_workers, "BATCH", 7)
    monkeypatch.setattr(store_workers._Clock, "workers_pay", lambda clock: clock.batches >= 1)
    told: list[tuple[int, float]] = []
    together = open_store(
        entries, load_tokenizer(model), OPTIONS, workers=3, progress=lambda *state: told.append(state)
    )
    assert same(together, alone)
    assert by_the_parent == [7, 7, 6]  # until one batch was through; the third has a row that was dropped on reading
    # progress counts rows, dropped ones too, and ends at all of them with all bytes read
    assert told == sorted(told)
    assert told[-1] == (73, 1.0)


def test_a_store_that_another_process_put_in_place_just_now_is_taken(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = write(tmp_path / "a.jsonl", many(3))
    store = open_store([entry], load_tokenizer(model), OPTIONS)
    aside = store.path.rename(tmp_path / "finished")
    lock = store_build._lock

    def late(folder: int, name: Path) -> None:
        aside.rename(store.path)  # after this process looked for it, and made a folder of its own
        lock(folder, name)

    monkeypatch.setattr(store_build, "_lock", late)
    monkeypatch.setattr(store_build, "_Writer", None)
    assert open_store([entry], load_tokenizer(model), OPTIONS).path == store.path
    assert not [path for path in store.path.parent.iterdir() if path.name.startswith(".tmp-")]


def test_workers_pay_only_where_the_first_thread_holds_up_for_long() -> None:
    share = 0.001
    clock = store_workers._Clock(lambda: share)
    done: Future[Any] = Future()
    done.set_result(None)
    clock._start -= 1.0  # one second spent, a thousandth read
    assert not clock.workers_pay()  # nothing is known yet
    for _ in range(store_workers.TRIED):
        clock.wait_for(done)
    assert clock.workers_pay()
    clock.waited = 0.5  # the encoder is what holds up: more processes would only cost
    assert not clock.workers_pay()
    clock.waited, share = 0.0, 0.9  # soon over
    assert not clock.workers_pay()


def test_batches_are_bounded_by_rows_and_by_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_workers, "BATCH", 3)
    monkeypatch.setattr(store_workers, "BATCH_CHARS", 50)
    entry = write(tmp_path / "a.jsonl", [*(chat("q", "a") for _ in range(4)), chat("q", "a" * 60), chat("q", "a")])
    rows = ((0, row) for row in read_conversations(entry.path))
    assert [len(batch) for batch in store_workers._batches(rows)] == [3, 2, 1]


def test_the_full_way_for_every_row_gives_the_same_store(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [write(tmp_path / "a.jsonl", rows_of_all_kinds())]
    quick = set_aside(open_store(entries, load_tokenizer(model), OPTIONS), tmp_path / "quick")

    def mismatch(*_: object) -> None:
        raise QuickMismatch("a.jsonl:1")

    # Rule: when a compared row differs, everything is made again without the quick way, aloud.
    monkeypatch.setattr(Masker, "_compare_some", mismatch)
    with caplog.at_level("WARNING", "sengi.data"):
        full = open_store(entries, load_tokenizer(model), OPTIONS)
    assert same(full, quick)
    assert "a.jsonl:1: this chat template has to be run for every row" in caplog.text


def test_the_garbage_collector_is_on_again(tmp_path: Path, model: Path) -> None:
    open_store([write(tmp_path / "a.jsonl", many(2))], load_tokenizer(model), OPTIONS)
    assert gc.isenabled()
    with pytest.raises(DataError):
        open_store([write(tmp_path / "b.jsonl", [{"messages": 1}])], load_tokenizer(model), OPTIONS)
    assert gc.isenabled()


def test_overlong_samples_are_dropped_counted_and_listed(tmp_path: Path, model: Path) -> None:
    entry = write(tmp_path / "a.jsonl", [*many(2), chat("long?", "word " * 200), *many(2)])
    store = open_store([entry], load_tokenizer(model), OPTIONS)
    assert len(store) == 4
    assert store.meta["dropped"] == {"overlong": 1}
    assert store.meta["rows"] == 5
    (drop,) = drops(store)
    assert drop["place"] == f"{entry.path}:3"
    assert drop["reason"] == "overlong"
    assert "max_length is 96" in drop["message"]
    # a sample of exactly max_length stays
    longest = int(store.lengths.max())
    assert open_store([entry], load_tokenizer(model), StoreOptions(longest, "drop")).meta["dropped"] == {"overlong": 1}
    assert open_store([entry], load_tokenizer(model), StoreOptions(longest - 1, "drop")).meta["dropped"]["overlong"] > 1


def test_overlong_samples_can_be_cut(tmp_path: Path, model: Path) -> None:
    rows = [*many(1), chat("long?", "word " * 200), chat("question " * 80, "answer")]
    store = open_store([write(tmp_path / "a.jsonl", rows)], load_tokenizer(model), StoreOptions(96, "truncate"))
    whole = Masker(load_tokenizer(model)).sample(list(read_conversations(tmp_path / "a.jsonl"))[1])
    np.testing.assert_array_equal(store.sample(1).input_ids, whole.input_ids[:96])
    np.testing.assert_array_equal(store.sample(1).loss_mask, whole.loss_mask[:96])
    assert store.meta["truncated"] == 2
    # a cut that leaves nothing to learn is a drop with its own reason, listed beside the cuts
    assert store.meta["dropped"] == {"no_supervised_token": 1}
    assert [line["reason"] for line in drops(store)] == ["truncated", "truncated", "no_supervised_token"]


def test_overlong_samples_can_be_an_error(tmp_path: Path, model: Path) -> None:
    entry = write(tmp_path / "a.jsonl", [*many(1), chat("long?", "word " * 200)])
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: [\d,]+ tokens, max_length is 96; raise max_length, or set overlong"
    ):
        open_store([entry], load_tokenizer(model), StoreOptions(96, "error"))


def test_rows_without_anything_to_learn_are_counted_by_reason(tmp_path: Path, model: Path) -> None:
    rows = [
        *many(2),
        {"messages": [{"role": "user", "content": "no answer"}]},
        {"messages": [{"role": "user", "content": "nor here"}]},
        chat("Hi?", "Yes.") | {"messages": [*chat("Hi?", "Yes.")["messages"][:1], _untrained("Yes.")]},
    ]
    store = open_store([write(tmp_path / "a.jsonl", rows)], load_tokenizer(model), OPTIONS)
    assert len(store) == 2
    assert store.meta["dropped"]["no_assistant_turn"] == 2
    assert sum(store.meta["dropped"].values()) == 3
    assert [line["place"].rpartition(":")[2] for line in drops(store)] == ["3", "4", "5"]
    assert all(line["message"].startswith(line["place"]) for line in drops(store))


def _untrained(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "train": False}


def test_all_rows_dropped_is_an_error_that_shows_the_first(tmp_path: Path, model: Path) -> None:
    entry = write(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "no"}]}] * 3)
    with pytest.raises(DataError, match=r"none of 3 rows can be trained on; the first: .*a\.jsonl:1: .*no_assistant"):
        open_store([entry], load_tokenizer(model), OPTIONS)
    assert list((cache_folder() / "tokens").iterdir()) == []


def test_an_empty_file_is_an_error_that_names_it(tmp_path: Path, model: Path) -> None:
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        open_store([write(tmp_path / "empty.jsonl", [])], load_tokenizer(model), OPTIONS)


def test_a_row_that_cannot_be_read_is_an_error_that_names_file_and_line(tmp_path: Path, model: Path) -> None:
    entry = write(tmp_path / "a.jsonl", many(2))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user", "con')
    with pytest.raises(DataError, match=r"a\.jsonl:3"):
        open_store([entry], load_tokenizer(model), OPTIONS)


def test_a_full_disk_is_an_error_that_names_the_cure(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match=r"No space left on device; free space or set SENGI_CACHE"):
        open_store([write(tmp_path / "a.jsonl", many(2))], load_tokenizer(model), OPTIONS)


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_cure(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SENGI_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"Not a directory; free space or set SENGI_CACHE to another disk"):
        open_store([write(tmp_path / "a.jsonl", many(2))], load_tokenizer(model), OPTIONS)


def test_a_data_file_that_cannot_be_read_is_an_error_that_names_it(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = write(tmp_path / "a.jsonl", many(2))
    plain_open = Path.open

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == "a.jsonl":
            raise PermissionError(13, "Permission denied")
        return plain_open(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read \(Permission denied\); check the path"):
        open_store([entry], load_tokenizer(model), OPTIONS)


def test_two_builders_of_one_store_end_with_one(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = write(tmp_path / "a.jsonl", many(3))
    builds, blocks = [], store_build.blocks

    def counted(*arguments: Any) -> Any:
        builds.append(arguments)
        return blocks(*arguments)

    monkeypatch.setattr(store_build, "blocks", counted)
    with ThreadPoolExecutor(3) as pool:
        stores = [pool.submit(open_store, [entry], load_tokenizer(model), OPTIONS) for _ in range(3)]
    assert len({store.result().path for store in stores}) == 1
    assert len(builds) == 1
    assert len(stores[0].result()) == 3


FILES = ["ids.bin", "mask.bin", "index.npz", "meta.json"]


# a grown index.npz is none: a zip file may have anything before it
@pytest.mark.parametrize(
    ("name", "damage"),
    [(n, d) for n in FILES for d in ("missing", "empty", "cut", "grown") if (n, d) != ("index.npz", "grown")],
)
def test_a_damaged_store_says_so_and_names_the_cure(tmp_path: Path, built: Path, name: str, damage: str) -> None:
    store = Path(shutil.copytree(built, tmp_path / "damaged"))
    content = (store / name).read_bytes()
    (store / name).unlink()
    if damage != "missing":
        kept = {"empty": b"", "cut": content[: len(content) // 2], "grown": content + content}[damage]
        (store / name).write_bytes(kept)
    with pytest.raises(DataError, match=r"the token store is damaged .*; delete this folder, it is rebuilt"):
        TokenStore(store)


@pytest.mark.parametrize(
    "meta",
    ["[]", "{}", '{"tokens": null}', '{"tokens": {}}'],
)
def test_a_store_with_wrong_meta_is_damaged(tmp_path: Path, built: Path, meta: str) -> None:
    store = Path(shutil.copytree(built, tmp_path / "damaged"))
    (store / "meta.json").write_text(meta)
    with pytest.raises(DataError, match="the token store is damaged"):
        TokenStore(store)


def test_an_index_of_another_store_is_damage(tmp_path: Path, built: Path) -> None:
    store = Path(shutil.copytree(built, tmp_path / "damaged"))
    with np.load(built / "index.npz") as index:
        arrays = dict(index)
    arrays["offsets"] = arrays["offsets"][:-1]
    np.savez(store / "index.npz", **arrays)
    with pytest.raises(DataError, match="the token store is damaged"):
        TokenStore(store)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A small good store."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENGI_CACHE", str(folder / "cache"))
        return open_store([write(folder / "a.jsonl", many(3))], load_tokenizer(model), OPTIONS).path
