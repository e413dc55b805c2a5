"""The log of a run that goes on, followed while it is written."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sengi import storage
from sengi.errors import StorageError
from sengi.study.recording import Dynamics

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
    return {"step": step, "step_seconds": 0.25 * (time % 7), "loss": time}


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
                    assert followed.read() == records
                log.close()
                log = storage.AppendLog(followed.path)
            elif event == "continue after":
                log.close()
                kept = records[:number]
                storage.write_file(followed.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
                log = storage.AppendLog(followed.path)
            elif event == "steps":
                for step in range(len(records) + 1, len(records) + 1 + number):
                    log.append(line(step, time := time + 1))
            else:
                assert followed.read() == records
                assert followed.seconds == sum(row["step_seconds"] for row in records)
        log.close()
        assert followed.read() == storage.read_lines(followed.path)


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
