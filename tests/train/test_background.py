"""The queue of the second process: order, causes of failure, and that nothing is left running."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from sengi.evaluate.suite import Suite
from sengi.train.background import Background, Job

# Stands for `python -m sengi.train.score_step`: reads the same job, and does what the model folder's name says.
SECOND = """
import json, os, sys, time
job = json.load(sys.stdin)
with open(os.path.join(job["run"], "log.jsonl"), "a") as log:
    log.write(json.dumps({**job, "threads": os.environ["OMP_NUM_THREADS"], "rank": os.environ.get("RANK")}) + chr(10))
what = os.path.basename(job["model"])
if what == "sleeps": time.sleep(600)
if what == "fails": sys.exit("Traceback ..." + chr(10) + "x.jsonl:3: no answer")
if what == "killed": os.kill(os.getpid(), 9)
if what == "silent": os._exit(7)
"""
SUITE = Suite(tasks=("mmlu", "questions:own.jsonl"), limit=3, data_root=Path("data"))


@pytest.fixture
def queue(tmp_path: Path) -> Background:
    return Background(tmp_path, SUITE, "f" * 64, 1, [sys.executable, "-c", SECOND])


def wait(queue: Background) -> tuple[int, str]:
    """The next result."""
    deadline = time.monotonic() + 60
    while (done := queue.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return done


def test_one_at_a_time_and_in_order(queue: Background, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")  # as under torchrun: the second process is of no group
    for step in (0, 2, 4):
        queue.add(Job(step, tmp_path / "works"))
    assert queue.steps == [0, 2, 4]  # all of them must stay on disk
    assert [wait(queue) for _ in range(3)] == [(0, ""), (2, ""), (4, "")]
    assert queue.steps == []
    assert queue.poll() is None
    jobs = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [job["step"] for job in jobs] == [0, 2, 4]
    suite = {**jobs[0]["suite"], "tasks": tuple(jobs[0]["suite"]["tasks"]), "data_root": Path("data")}
    assert Suite(**suite) == SUITE
    assert (jobs[0]["threads"], jobs[0]["rank"], jobs[0]["parent"]) == ("1", None, os.getpid())


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("fails", "x.jsonl:3: no answer"),
        ("killed", "the second process was ended by SIGKILL, as a machine without free memory does"),
        ("silent", "the second process ended with exit status 7"),
    ],
)
def test_the_cause_of_a_failure_is_one_line_and_the_next_goes_on(
    queue: Background, tmp_path: Path, what: str, cause: str
) -> None:
    queue.add(Job(1, tmp_path / what))
    queue.add(Job(2, tmp_path / "works"))
    assert wait(queue) == (1, cause)
    assert wait(queue) == (2, "")


def test_a_process_that_cannot_be_started_is_told_not_raised(tmp_path: Path) -> None:
    queue = Background(tmp_path, SUITE, "f" * 64, 1, [str(tmp_path / "no such program")])
    queue.add(Job(3, tmp_path / "works"))
    assert queue.steps == [3]
    step, cause = wait(queue)
    assert step == 3
    assert cause.startswith("the second process could not be started: ")
    assert queue.steps == []


def test_close_leaves_nothing_running(queue: Background, tmp_path: Path) -> None:
    queue.add(Job(1, tmp_path / "sleeps"))
    queue.add(Job(2, tmp_path / "works"))
    assert queue.poll() is None
    while not (tmp_path / "log.jsonl").exists():
        time.sleep(0.01)
    began = time.monotonic()
    queue.close()
    assert time.monotonic() - began < 30
    assert queue.steps == []
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
