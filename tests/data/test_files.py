from __future__ import annotations

import bz2
import csv
import gzip
import json
import logging
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.data import files as files_module
from sengi.data.bounded import Limits
from sengi.data.files import find_files, list_files, read_rows, split_suffix
from sengi.data.rows import MAX_DEPTH, RowError, printable
from sengi.errors import DataError

ROWS = [{"text": "a b"}, {"text": "über \u2028 zwei\x85drei\x0c"}, {"text": "line\nbreak, 'quote' \"x\""}]


def compress(data: bytes, compression: str) -> bytes:
    if compression == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    plain = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    return plain[compression](data)


def encode(rows: list[dict], kind: str, path: Path) -> bytes:
    if kind == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == ".json":
        return json.dumps(rows, indent=1, ensure_ascii=False).encode()
    if kind == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path.read_bytes()


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def rows_of(path: Path, **limits: int) -> list:
    return list(read_rows(path, limits=Limits(**limits)))


# ---- every kind in every compression


@pytest.mark.parametrize("compression", ["", ".gz", ".xz", ".zst", ".bz2"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_reads_the_same_rows(tmp_path, kind, compression):
    path = write(tmp_path / f"a{kind}{compression}", compress(encode(ROWS, kind, tmp_path / "raw"), compression))
    seen: list[int] = []
    assert [row for _, row in read_rows(path, on_bytes=seen.append)] == ROWS
    # Progress adds up to the file, where the file is read as a stream.
    if (kind, compression != "") != (".parquet", True):
        assert sum(seen) == path.stat().st_size


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20)), min_size=1, max_size=5))
def test_jsonl_keeps_any_text(tmp_path_factory, rows):
    # Rule: only "\n" ends a row, whatever line breaks the text holds and however it is escaped.
    for ascii_only in (True, False):
        lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
        path = write(tmp_path_factory.mktemp("x") / "a.jsonl", lines)
        assert list(read_rows(path)) == list(enumerate(rows, 1))


def test_jsonl_row_numbers_are_line_numbers_and_blank_lines_are_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert list(read_rows(path)) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"version": 1, "data": [{"a": 1}, {"a": 2}]}', [{"a": 1}, {"a": 2}]),
        ('{"text": "one object is one row"}', [{"text": "one object is one row"}]),
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),  # JSONL under the name of JSON
        (' [ {"a": 1} , {"a": 2} ] ', [{"a": 1}, {"a": 2}]),
    ],
)
def test_json_documents(tmp_path, text, expected):
    assert [row for _, row in read_rows(write(tmp_path / "a.json", text))] == expected


def test_parquet_structs_lose_the_nulls_that_the_schema_adds(tmp_path):
    # Rule: a struct column gives every struct the keys of all rows; a tool call must not gain null arguments.
    rows = [{"calls": [{"args": {"x": 1}}]}, {"calls": [{"args": {"y": 2}}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row for _, row in read_rows(tmp_path / "a.parquet")] == rows


# ---- rows that cannot be read are named, the others are read


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        ('{"a": 1,}', "not_json", "not valid JSON"),
        ('{"a": 1} {"b": 2}', "not_json", "more text"),
        ('{"a": 1, "a": 2}', "duplicate_key", "'a' appears twice"),
        ('{"a": {"b": 1, "b": 1}}', "duplicate_key", "'b' appears twice"),
        ('{"a": NaN}', "bad_number", "NaN is not JSON"),
        ('{"a": -Infinity}', "bad_number", "Infinity is not JSON"),
        ('{"a": ' + "9" * 100_000 + "}", "bad_number", "thousands of digits"),
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "too_deep", "nested deeper"),
        ('{"a": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "too_deep", "nested deeper"),
        (r'{"a": "\ud800"}', "bad_unicode", "surrogate"),
        ("[1]", "not_an_object", "the row is a list"),
        ('"x"', "not_an_object", "the row is 'x'"),
        ("\0\0\0", "not_json", "not valid JSON"),
    ],
)
def test_bad_rows_become_row_errors(tmp_path, line, reason, words):
    path = write(tmp_path / "a.jsonl", f'{{"a": 0}}\n{line}\n{{"a": 9}}\n')
    first, (number, error), last = read_rows(path)
    assert (first, last) == ((1, {"a": 0}), (3, {"a": 9}))
    assert isinstance(error, RowError)
    assert (number, error.row, error.reason) == (2, 2, reason)
    assert str(error).startswith(f"{path}:2: ")
    assert words in str(error)
    assert "\n" not in str(error)


def test_a_depth_at_the_limit_and_whole_surrogate_pairs_are_fine(tmp_path):
    deep = '{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}"
    path = write(tmp_path / "a.jsonl", deep + "\n" + r'{"a": "\ud83d\ude00"}')
    (_, first), (_, second) = read_rows(path)
    assert isinstance(first, dict)
    assert second == {"a": "\U0001f600"}


def test_json_list_goes_on_after_a_bad_row(tmp_path):
    path = write(tmp_path / "a.json", '[{"a": 1, "a": 2}, {"a": NaN}, {"a": 3}]')
    one, two, three = (row for _, row in read_rows(path))
    assert (one.reason, two.reason, three) == ("duplicate_key", "bad_number", {"a": 3})


def test_csv_record_of_another_width(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\n1,2\n3\n\n4,5\n")
    one, (number, error), three = read_rows(path)
    assert (one, three) == ((1, {"a": "1", "b": "2"}), (3, {"a": "4", "b": "5"}))
    assert (number, error.reason) == (2, "bad_columns")


# ---- files that cannot be read to their end are errors with file and line


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": 2', r"a\.jsonl:2: the last line is cut"),
        ("a.jsonl", '{"a": 1}\n{"a": "ü'.encode()[:-1], r"a\.jsonl:2: the last line is cut"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', r"a\.jsonl:2: not UTF-8 \(byte 0xe9"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), r"a\.jsonl:1: not UTF-8"),
        ("a.json", b'[{"a": 1},\n {"a": 2}', r"a\.json:2: the JSON list is cut or broken after row 2"),
        ("a.json", b'[{"a": 1},\n {"a": ', r"a\.json:2: not valid JSON"),
        ("a.json", b'[{"a": 1}] 5', r"a\.json:1: the JSON list is cut or broken"),
        ("a.json", b"[" * 200_000, r"a\.json:1: nested deeper"),
        ("a.json", b'[{"a": "\xe9"}]', r"a\.json:1: not UTF-8"),
        ("a.csv", b'a,b\n1,"2\n', r"a\.csv:2: not readable as CSV .*close the quotes"),
        ("a.csv", b"a,a\n1,2\n", "names a column twice"),
        ("a.csv", b"prompt;completion\n1;2\n", "not separated by commas"),
        ("a.csv", b"a,b\n1,\xe9\n", r"a\.csv:2: not UTF-8"),
        ("a.parquet", b"PAR1 is not all", "not readable as Parquet"),
        ("a.jsonl.gz", b"plain", "cannot be decompressed"),
        ("a.jsonl.xz", lzma.compress(b'{"a": 1}\n' * 9)[:-9], "cannot be decompressed"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "cannot be decompressed"),
        ("a.jsonl.bz2", bz2.compress(b'{"a": 1}\n' * 9)[:-9], "cannot be decompressed"),
        ("a.jsonl.zst", compress(b'{"a": 1}\n' * 9, ".zst")[:-3], "cannot be decompressed"),
        ("a.txt", b"x", "ends in none of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_broken_files(tmp_path, name, data, message):
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(write(tmp_path / name, data)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.xz"])
def test_empty_files(tmp_path, name):
    data = lzma.compress(b"") if name.endswith(".xz") else b""
    with pytest.raises(DataError, match=r"holds no rows|not valid JSON"):
        list(read_rows(write(tmp_path / name, data)))


def test_flipped_and_cut_bytes_never_raise_anything_else(tmp_path):
    for kind in (".jsonl", ".json", ".csv", ".parquet"):
        for compression in ("", ".gz", ".zst"):
            data = compress(encode(ROWS, kind, tmp_path / "raw"), compression)
            for at in range(0, len(data), max(1, len(data) // 25)):
                for broken in (data[:at], data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]):
                    path = write(tmp_path / f"a{kind}{compression}", broken)
                    try:
                        rows = [row for _, row in read_rows(path)]
                        named = all(isinstance(row, (dict, RowError)) for row in rows)
                    except DataError as error:
                        named = str(path) in str(error)
                    assert named


def test_only_regular_files_but_links_to_them(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        list(read_rows(tmp_path / "pipe.jsonl"))
    os.symlink("/dev/zero", tmp_path / "zero.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        list(read_rows(tmp_path / "zero.jsonl"))
    os.symlink(write(tmp_path / "real.jsonl", '{"a": 1}'), tmp_path / "link.jsonl")
    assert list(read_rows(tmp_path / "link.jsonl")) == [(1, {"a": 1})]
    with pytest.raises(DataError, match="cannot be opened"):
        list(read_rows(tmp_path / "none.jsonl"))


# ---- limits


def test_long_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n' + json.dumps({"a": "x" * 100}) + "\n")
    assert len(rows_of(path)) == 2
    with pytest.raises(DataError, match=r"a\.jsonl:2: the line is longer than 50 bytes"):
        rows_of(path, line_bytes=50)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst", ".bz2"])
def test_decompression_ratio_and_total(tmp_path, compression):
    data = b'{"a": "' + b"x" * 3_000_000 + b'"}\n'
    path = write(tmp_path / f"a.jsonl{compression}", compress(data, compression))
    assert len(rows_of(path)) == 1  # a small file may be as dense as it likes
    with pytest.raises(DataError, match="more than 200 to 1"):
        rows_of(path, ratio_after=1_000_000)
    with pytest.raises(DataError, match="larger than 2,000,000 bytes when decompressed"):
        rows_of(path, total_bytes=2_000_000)


def test_bomb_is_stopped_early(tmp_path):
    # 512 MiB in half a megabyte, by default limits: refused after 64 MiB, in memory of one line.
    piece = b'{"a": "' + b"x" * 1_000_000 + b'"}\n'
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=9) as file:
        for _ in range(100):
            file.write(piece)
    with pytest.raises(DataError, match="more than 200 to 1"):
        list(read_rows(tmp_path / "a.jsonl.gz"))


def test_documents_have_a_size_limit(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([{"a": "x" * 1000}]))
    with pytest.raises(DataError, match=r"larger than 500 bytes.*write it as JSONL"):
        rows_of(path, document_bytes=500)


def test_parquet_bomb(tmp_path):
    # Runs of one value: 40 MB of numbers in some kilobytes.
    table = pa.table({"a": pa.array([0.5] * 200_000)})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="zstd")
    with pytest.raises(DataError, match="more than 20 to 1"):
        rows_of(tmp_path / "a.parquet", ratio=20, ratio_after=1000)


# ---- finding files


def test_folder_is_searched_in_order_and_names_what_it_leaves_out(tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl.xz", "a.csv", "sub/c.PARQUET", "README.md", "dataset_infos.json", ".hidden.jsonl"):
        write(tmp_path / name, b"")
    files, skipped = list_files(str(tmp_path))
    assert files == [tmp_path / "a.csv", tmp_path / "b.jsonl.xz", tmp_path / "sub/c.PARQUET"]
    assert skipped == [tmp_path / name for name in (".hidden.jsonl", "README.md", "dataset_infos.json")]
    with caplog.at_level(logging.WARNING):
        assert find_files(str(tmp_path)) == files
    assert "README.md" in caplog.text


def test_linked_folders_are_searched_once(tmp_path):
    for folder in ("data/part1", "elsewhere/part2"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "data" / "part2").symlink_to(tmp_path / "elsewhere" / "part2")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / ".hidden.jsonl").write_text('{"text": "a"}\n')
    files, skipped = list_files(str(tmp_path / "data"))
    assert [str(file.relative_to(tmp_path)) for file in files] == ["data/part1/rows.jsonl", "data/part2/rows.jsonl"]
    assert [file.name for file in skipped] == [".hidden.jsonl"]


def test_names_that_are_no_text_are_refused(tmp_path):
    name = os.fsdecode(b"caf\xe9.jsonl")
    (tmp_path / name).write_text('{"text": "a"}\n')
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match="the name is not UTF-8; rename the file"):
            list_files(str(path))
    with pytest.raises(DataError, match="no such file or folder"):
        list_files("~no-such-user-here/rows.jsonl")


@pytest.mark.parametrize("held", ["data/test-00000-of-00001.jsonl", "dev/rows.jsonl", "validation.jsonl"])
def test_a_hub_dataset_with_other_splits_is_refused(tmp_path, monkeypatch, held):
    for name in ("data/train-00000-of-00001.jsonl", "data/contest.jsonl", held):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}\n')
    monkeypatch.setattr(files_module, "download", lambda *_: tmp_path)
    with pytest.raises(DataError, match=r"org/name: holds 1 file\(s\) of other splits beside 2 .* name the files"):
        list_files("org/name")
    (tmp_path / held).unlink()
    assert len(list_files("org/name")[0]) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("trian.jsonl", r"no such file.*did you mean .*/train\.jsonl\?"),
        ("dta/train.jsonl", r"did you mean .*/data\?"),
        ("", "names no file"),
        ("a\0b", "names no file"),
        ("data", "holds no .jsonl, .json, .csv, .parquet file"),
        ("notes.txt", "ends in none of"),
    ],
)
def test_paths_that_name_nothing(tmp_path, wrong, message):
    (tmp_path / "data").mkdir()
    write(tmp_path / "train.jsonl", "{}")
    write(tmp_path / "notes.txt", "x")
    with pytest.raises(DataError, match=message):
        find_files(str(tmp_path / wrong) if wrong else "")


def test_hub_id_is_downloaded_and_files_are_not_taken_for_one(tmp_path, monkeypatch):
    asked = []

    def download(dataset: str, suffixes: tuple[str, ...]) -> Path:
        asked.append(dataset)
        write(tmp_path / "train.jsonl", "{}")
        return tmp_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files_module, "download", download)
    assert find_files("org/name") == [tmp_path / "train.jsonl"]
    with pytest.raises(DataError, match="no such file"):
        find_files("org/name.jsonl")
    (tmp_path / "org").mkdir()
    with pytest.raises(DataError, match="no such file"):
        find_files("org/name")
    assert asked == ["org/name"]


def test_hub_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"org-x/name: .*HF_HUB_OFFLINE") as caught:
        find_files("org-x/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/train.jsonl.xz", ("train", ".jsonl", ".xz")),
        ("v1.2.JSON", ("v1.2", ".json", "")),
        ("x.parquet.zst", ("x", ".parquet", ".zst")),
        ("x.tar.gz", ("x.tar.gz", "", "")),
    ],
)
def test_split_suffix(name, parts):
    assert split_suffix(name) == parts


def test_words_of_a_file_cannot_drive_the_terminal():
    assert printable("\x1b[31mred\x07\u202e\n") == r"\x1b[31mred\x07\u202e\n"
    assert printable("x" * 100) == "x" * 57 + "..."
