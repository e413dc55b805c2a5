"""Read the rows of one open data file: JSONL, JSON, CSV, Parquet."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sengi.data.bounded import Limits
from sengi.data.rows import Problem, RowError, StrictDecoder, printable, show, skip_blank
from sengi.errors import DataError

PARQUET_BATCH = 64  # rows decoded at a time: small, since one encoded row can repeat into a large one
UTF8_BOM = b"\xef\xbb\xbf"

Row = tuple[int, Any]  # a dict or a RowError, or what ``quick`` made


def _lines(stream: io.BufferedIOBase, name: str, limits: Limits) -> Iterator[tuple[int, str]]:
    # Only "\n" ends a line: rows may hold U+2028, form feeds and other breaks that str.splitlines() knows.
    number = 0
    while line := stream.readline(limits.line_bytes + 1):
        number += 1
        if len(line) > limits.line_bytes:
            raise DataError(
                f"{name}:{number}: the line is longer than {limits.line_bytes:,} bytes; "
                "split the row, or write one row a line"
            )
        if number == 1:
            line = line.removeprefix(UTF8_BOM)
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                raise DataError(_cut(name, number)) from None
            raise DataError(
                f"{name}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start + 1}); "
                "save the file as UTF-8"
            ) from None


def _cut(name: str, number: int) -> str:
    return f"{name}:{number}: the last line is cut or not JSON; get the file again, or delete that line"


def jsonl_rows(
    stream: io.BufferedIOBase,
    name: str,
    limits: Limits,
    quick: Callable[[str, int], Any] | None = None,
    skip: int = 0,
) -> Iterator[Row]:
    """Yield the rows of JSONL, one a line; blank lines are skipped.

    Args:
        stream: the file's bytes.
        name: its name in messages.
        limits: see ``read_rows``.
        quick: see ``read_rows``.
        skip: see ``read_rows``.

    Raises:
        DataError: a line is not UTF-8 or too long, or the last one is cut.
    """
    decoder = StrictDecoder()
    lines = _lines(stream, name, limits)
    for _ in range(skip):
        next((line for _, line in lines if line and not line.isspace()), None)
    for number, line in lines:
        if quick is not None and (made := quick(line, number)) is not None:
            yield number, made
            continue
        if line.isspace() or not line:
            continue
        try:
            row = decoder.value(line)
        except Problem as problem:
            if problem.reason == "not_json" and not line.endswith("\n"):
                raise DataError(_cut(name, number)) from None
            row = problem
        yield number, _object_row(row, name, number)


def _object_row(row: Any, name: str, number: int) -> dict[str, Any] | RowError:
    if isinstance(row, dict):
        return row
    if not isinstance(row, Problem):
        row = Problem("not_an_object", f"the row is {show(row)}, not an object with keys such as 'messages'")
    return RowError(row.reason, f"{name}:{number}: {row}", number)


def json_rows(data: bytes, name: str, limits: Limits) -> Iterator[Row]:
    """Yield the rows of a JSON document: a list, ``{"data": list}``, one object, or JSONL under this name.

    Raises:
        DataError: it is not UTF-8, or not JSON from some line on.
    """
    try:
        text = data.removeprefix(UTF8_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8") from None
    start = skip_blank(text, 0)
    decoder = StrictDecoder()
    if text.startswith("[", start):
        yield from _json_list(decoder, text, start + 1, name)
        return
    first, end = _json_value(decoder, text, start, name)
    if skip_blank(text, end) < len(text):  # several values: JSONL under the name of JSON
        yield from jsonl_rows(io.BytesIO(data), name, limits)
    elif isinstance(first, dict) and isinstance(first.get("data"), list):
        for number, row in enumerate(first["data"], 1):
            yield number, _object_row(row, name, number)
    else:
        yield 1, _object_row(first, name, 1)


def _json_list(decoder: StrictDecoder, text: str, position: int, name: str) -> Iterator[Row]:
    # Row by row, so that memory holds the text and one row, not a million dicts.
    position = skip_blank(text, position)
    number = 0
    while not text.startswith("]", position):
        number += 1
        row, end = _json_value(decoder, text, position, name)
        yield number, _object_row(row, name, number)
        position = skip_blank(text, end)
        if text.startswith(",", position):
            position = skip_blank(text, position + 1)
        elif not text.startswith("]", position):
            break
    if skip_blank(text, position + 1) < len(text) or not text.startswith("]", position):
        line = text.count("\n", 0, position) + 1
        raise DataError(f"{name}:{line}: the JSON list is cut or broken after row {number}; get the file again")


def _json_value(decoder: StrictDecoder, text: str, position: int, name: str) -> tuple[Any, int]:
    try:
        return decoder.value_at(text, position)
    except Problem as problem:
        line = text.count("\n", 0, position) + 1
        raise DataError(f"{name}:{line}: {problem}; mend the value that starts on this line") from None


def csv_rows(stream: io.BufferedIOBase, name: str, limits: Limits) -> Iterator[Row]:
    """Yield the records of a CSV file with a header; every value is text.

    Raises:
        DataError: the header is no header, or quotes do not close.
    """
    csv.field_size_limit(max(csv.field_size_limit(), limits.line_bytes))  # one setting for the whole process
    records = csv.reader((line for _, line in _lines(stream, name, limits)), strict=True)
    try:
        header = next(records, [])
        if len(set(header)) != len(header):
            raise DataError(f"{name}:1: the header names a column twice; rename one")
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            raise DataError(f"{name}:1: columns are not separated by commas; save the file with commas")
        number = 0
        for fields in records:
            if not fields:
                continue
            number += 1
            if len(fields) == len(header):
                yield number, dict(zip(header, fields, strict=True))
                continue
            text = f"the record has {len(fields)} fields and the header {len(header)}; quote commas and line breaks"
            yield number, RowError("bad_columns", f"{name}:{number}: {text}", number)
    except csv.Error as error:
        cure = "close the quotes, or get the file again if it was cut"
        raise DataError(f"{name}:{records.line_num}: not readable as CSV ({error}); {cure}") from None


def parquet_rows(
    source: io.FileIO | io.BytesIO, name: str, limits: Limits, on_bytes: Callable[[int], None] | None
) -> Iterator[Row]:
    """Yield the rows of a Parquet file, decoded a few at a time; ``source`` is closed at the end.

    Raises:
        DataError: it is not Parquet, cut, or packs more than the limits allow.
    """
    with source:
        size = source.seek(0, os.SEEK_END)
        if size == 0:
            return
        number = 0
        try:
            parquet = pq.ParquetFile(source)
            _check_parquet(parquet, size, name, limits)
            for batch in parquet.iter_batches(batch_size=PARQUET_BATCH, use_threads=False):
                if batch.nbytes > limits.line_bytes * PARQUET_BATCH:
                    raise DataError(f"{name}: rows of more than {limits.line_bytes:,} bytes; split them")
                for row in batch.to_pylist():
                    number += 1
                    yield number, _drop_nulls(row)
                if on_bytes is not None:
                    on_bytes(size * batch.num_rows // parquet.metadata.num_rows)
        except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
            text = printable(" ".join(str(error).split()), 120)
            raise DataError(
                f"{name}: not readable as Parquet after row {number} ({text}); write the file again"
            ) from None


def _check_parquet(parquet: pq.ParquetFile, size: int, name: str, limits: Limits) -> None:
    metadata = parquet.metadata
    total = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if total > limits.ratio_after and total > limits.ratio * size:
        raise DataError(f"{name}: {total:,} bytes packed into {size:,}, more than {limits.ratio} to 1; rewrite it")


def _drop_nulls(value: Any) -> Any:
    """Remove null members of structs: Parquet gives each struct the keys of all rows (tools, tool calls)."""
    if isinstance(value, dict):
        return {key: _drop_nulls(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [_drop_nulls(child) for child in value]
    return value
