"""Read the rows of a benchmark's local file and bring them into the columns that the hub's data set has."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import TemplateError
from jinja2.sandbox import SandboxedEnvironment

from sengi.data.archive import archive_rows
from sengi.data.files import read_rows
from sengi.data.rows import RowError, printable, show
from sengi.errors import DataError
from sengi.harness.adapters import Adapter, Layout

Numbered = tuple[int, dict[str, Any]]


def hub_rows(adapter: Adapter, path: Path, member: str, config: str | None) -> list[dict[str, Any]]:
    """Return the rows of a local file as the hub has them.

    Args:
        adapter: says how.
        path: the file.
        member: name inside the archive; "" for plain files.
        config: the hub's configuration, such as ``abstract_algebra``.

    Raises:
        DataError: the file cannot be read, no row is left, or a row is incomplete; names file and row.
    """
    name = f"{printable(str(path), 300)}{f' ({member})' if member else ''}"
    status = os.stat(path)
    rows = _by_config(str(path), member, adapter, status.st_mtime_ns, status.st_size)
    kept = rows.get(config if adapter.by else None, ())
    if not kept:
        raise DataError(f"{name}: holds no row of {config!r} (by {adapter.by}); get the whole file")
    return [_reshape(adapter, row, config, f"{name}:{number}") for number, row in kept]


@functools.lru_cache(maxsize=64)  # MMLU's 57 subjects share two files, and checks are followed by the evaluation
def _by_config(path: str, member: str, adapter: Adapter, changed: int, size: int) -> dict[str | None, list[Numbered]]:
    del changed, size  # only keys: a file that was written again is read again
    groups: dict[str | None, list[Numbered]] = {}
    for number, row in _read(Path(path), member, adapter.rows_under):
        if adapter.by:
            _layout(adapter, row, f"{printable(path, 300)}:{number}")
        config = _value(adapter.by, row, None, f"{printable(path, 300)}:{number}") if adapter.by else None
        groups.setdefault(config, []).append((number, row))
    return groups


def _read(path: Path, member: str, list_key: str) -> Iterator[Numbered]:
    for number, row in archive_rows(path, member) if member else read_rows(path):
        if isinstance(row, RowError):
            raise row
        if list_key and isinstance(row.get(list_key), list):
            yield from enumerate(row[list_key], 1)
        else:
            yield number, row


def _layout(adapter: Adapter, row: dict[str, Any], place: str) -> Layout:
    for layout in adapter.rows:
        if all(column in row for column in layout.has):
            for column in layout.has:
                if row[column] is None or row[column] == "":
                    raise DataError(f"{place}: {column} is empty; complete the row or delete it")
            return layout
    wanted = " or ".join("(" + ", ".join(layout.has) + ")" for layout in adapter.rows)
    raise DataError(f"{place}: columns {show(', '.join(row))} are not {wanted}; complete or rename them")


def _reshape(adapter: Adapter, row: dict[str, Any], config: str | None, place: str) -> dict[str, Any]:
    layout = _layout(adapter, row, place)
    for words, condition in layout.valid.items():
        if not _value(condition, row, config, place):
            raise DataError(f"{place}: {words}; mend the row or delete it")
    if not layout.columns:
        return row
    return {column: _value(expression, row, config, place) for column, expression in layout.columns.items()}


def _value(expression: str, row: Mapping[str, Any], config: str | None, place: str) -> Any:
    try:
        value = _compiled(expression)(**{**row, "row": row, "config": config})
    except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise DataError(f"{place}: cannot be brought into the benchmark's columns ({error}); mend the row") from None
    if isinstance(value, Undefined):
        raise DataError(f"{place}: has no value for {expression}; complete the row")
    return value


@functools.cache
def _compiled(expression: str) -> Callable[..., Any]:
    environment = SandboxedEnvironment()
    environment.filters |= {"common_start": common_start, "parts": parts, "sentences": sentences}
    return environment.compile_expression(expression, undefined_to_none=False)


def common_start(texts: list[str]) -> str:
    """Return what all texts begin with, up to a blank.

    >>> common_start(["so Sarah", "so Sam"])
    'so '
    """
    start = os.path.commonprefix(texts)  # noqa: RUF071 - characters are what is wanted
    return start[: start.rfind(" ") + 1]


def parts(text: str) -> list[str]:
    """Return the answers of a TruthfulQA cell, which stand between semicolons."""
    return [part.strip() for part in text.split(";") if part.strip()]


def sentences(texts: list[str]) -> list[str]:
    """Return answers with a full stop at their end, as TruthfulQA's authors and the hub have them."""
    return [text.strip() if text.strip().endswith(".") else text.strip() + "." for text in texts]
