"""The log of a run that goes on, followed while it is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sengi import storage
from sengi.errors import StorageError
from sengi.study.recording import Dynamics, Step, step_of

EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("steps"), st.integers(1, 5)),
        st.tuples(st.just("half a line"), st.integers(1, 30)),
        st.tuples(st.just("continue after"), st.integers(0, 6)),
        st.tuples(st.just("look"), st.just(0)),
    ),
    max_size=20,
)


def line(step: int, time: int) -> dict[str, float]:
    return {
        "step": step,
        "samples_seen": 4 * step,
        "step_seconds": 0.25 * (time % 7),
        "loss": time,
        "grad_norm": 1.0,
        "half_grad_norm": 2.0,
        "half_share": 0.5,
    }


def kept(records: list[dict[str, Any]]) -> list[Step]:
    return [step_of(record) for record in records]


@given(EVENTS)
def test_what_is_followed_equals_what_is_read_whole(events: list[tuple[str, int]]) -> None:
    with TemporaryDirectory() as folder:
        followed = Dynamics(Path(folder))
        assert followed.read() == []
        log = storage.AppendLog(followed.path)
        time = 0
        for event, number in events:
            records = storage.read_lines(followed.path)
            if event == "half a line":  # a killed run, and the next one that mends its log
                with followed.path.open("ab") as file:
                    file.write(json.dumps(line(99, 99)).encode()[:number])
                if number % 2:
                    assert followed.read() == kept(records)
                log.close()
                log = storage.AppendLog(followed.path)
            elif event == "continue after":
                log.close()
                lines = "".join(json.dumps(row) + "\n" for row in records[:number])
                storage.write_file(followed.path, lines.encode())
                log = storage.AppendLog(followed.path)
            elif event == "steps":
                for step in range(len(records) + 1, len(records) + 1 + number):
                    log.append(line(step, time := time + 1))
            else:
                assert followed.read() == kept(records)
                assert followed.last == (records[-1] if records else {})
                assert followed.seconds == sum(row["step_seconds"] for row in records)
        log.close()
        assert followed.read() == kept(storage.read_lines(followed.path))


def test_a_step_is_kept_without_what_nobody_reads(tmp_path: Path) -> None:
    # a study of hundreds of runs holds all of their steps
    followed = Dynamics(tmp_path)
    whole = {**line(7, 3), **{f"rank_{n}": 0.1 * n for n in range(50)}}
    followed.path.write_text(2 * (json.dumps(whole) + "\n"))
    assert followed.read() == [Step(28, 3.0, 1.0, 3.0)] * 2  # noise: (2^2 - 1^2) / (1 / 0.5 - 1)
    assert followed.last == whole
    assert sum(map(sys.getsizeof, (followed.steps[0], *followed.steps[0]))) < 250


def test_each_line_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed, read = Dynamics(tmp_path), []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: read.append(text) or loads(text))
    log = storage.AppendLog(followed.path)
    for step in range(50):
        log.append(line(step, step))
        assert len(followed.read()) == step + 1
    assert len(read) == 50


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    followed = Dynamics(tmp_path)
    followed.path.write_text(json.dumps(line(1, 1)) + "\n")
    followed.read()
    with followed.path.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(StorageError, match=r"dynamics\.jsonl:2: not a JSON line"):
        followed.read()
