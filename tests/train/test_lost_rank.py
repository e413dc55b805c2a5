"""A rank that dies, freezes or raises alone: all processes of the run end soon, and the first cause is named."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from crash_harness import ask
from tests.warm import free_ports

from sengi.errors import DataError, InputError, RankError, StoppedByRequest
from sengi.train import lifeline
from sengi.train.distributed import World
from sengi.train.lifeline import Lifeline, rank_timeout

DIED = "died without a word: killed, out of memory, or its machine is gone"
AGAIN = "all processes of the run were ended: run the same command again to continue"


# Two real processes with gloo, FSDP2 and saves in the background. 30 s is the promise; gloo alone would wait for 300.
@pytest.mark.parametrize(
    ("verb", "victim"),
    [
        ("kill", 1),
        ("freeze", 0),
        ("raise", 1),
        pytest.param("kill", 0, marks=pytest.mark.slow),
        pytest.param("freeze", 1, marks=pytest.mark.slow),
    ],
)
def test_all_ranks_stop_with_the_first_cause(verb: str, victim: int) -> None:
    result = ask("lost_rank", verb=verb, victim=victim, port=free_ports(1)[0])
    print(result)
    other = 1 - victim
    place = f"rank {victim} (process {result['pids'][victim]} on {socket.gethostname()})"
    cause = {
        "kill": f"{place} {DIED}",
        "freeze": f"{place} gave no sign of life for 5 s",
        "raise": f"{place}: ZeroDivisionError: a mistake on one rank",
    }[verb]
    assert result["seconds"] < 30
    assert result["codes"][other] == 1
    assert result["errors"][other] == [["RankError", f"{cause}; {AGAIN}"]]
    assert result["status"] == ["failed", f"{cause}; {AGAIN}"]
    if verb == "raise":
        assert "ZeroDivisionError: a mistake on one rank" in result["errors"][victim][0]
    else:  # a frozen neighbour is killed, or torchrun would wait for it
        assert result["codes"][victim] == -signal.SIGKILL
    assert result["good"] >= result["saved"] >= 2  # nothing that was called saved is lost
    assert result["continued"] == 0


class Group:
    """Ranks of one process, each with its lifeline; what they tell each other on the way in is passed by hand."""

    def __init__(self, size: int) -> None:
        self.size, self.opened = size, {}
        self.lost: dict[int, RankError] = {}
        self.lines = [self._make(rank) for rank in range(size)]

    def _make(self, rank: int) -> Lifeline:
        group = self

        class Fake(World):
            def on_first(self, work: Callable[[], Any]) -> Any:
                if self.first:
                    group.opened["place"] = work()
                return group.opened["place"]

            def together(self, work: Callable[[], Any]) -> list[Any]:
                return [work()]

        return Lifeline(Fake(rank, self.size, torch.device("cpu")), lambda error: self.lost.update({rank: error}))

    def cause(self, rank: int) -> str:
        assert self.lines[rank]._known.wait(30)
        return self.lines[rank].cause


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("SENGI_RANK_TIMEOUT", "30")
    monkeypatch.setattr(lifeline, "ASK", 0.01)
    monkeypatch.setattr(lifeline.os, "_exit", lambda code: None)
    group = Group(3)
    for line in group.lines:
        line.__enter__()
    yield group
    for line in group.lines:
        line._closing.set()


def leave(line: Lifeline, error: BaseException | None = None) -> BaseException | None:
    """What the caller of a lifeline sees when its body ends with ``error``."""
    try:
        line.__exit__(type(error) if error else None, error, None)
    except RankError as told:
        return told
    return error


# Rule: ranks that end one after the other, by the end of the run or by a request to stop, alarm nobody.
@pytest.mark.parametrize("error", [None, StoppedByRequest("stopped by SIGTERM")])
def test_a_farewell_is_no_loss(group: Group, error: BaseException | None) -> None:
    for line in (group.lines[1], group.lines[0], group.lines[2]):
        assert leave(line, error) is error
        assert line.cause == ""


# Rule: an error of one rank reaches all others; the rank it happened on keeps its own.
@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_of_one_rank_is_told_to_all(group: Group, rank: int) -> None:
    error = ValueError("two\nlines")
    assert leave(group.lines[rank], error) is error
    for other in {0, 1, 2} - {rank}:
        assert group.cause(other).endswith(": ValueError: two lines")
        assert group.cause(other).startswith(f"rank {rank} (process ")
        told = leave(group.lines[other], RuntimeError("Connection closed by peer"))
        assert isinstance(told, RankError)
        assert told.elsewhere  # the rank it happened on prints it


# Rule: a rank that fails before rank 0 has listened to it, or before rank 0 listens at all, is heard all the same.
@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_before_the_first_look_is_told_to_all(
    group: Group, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Group(3)
    first = fresh.lines[0]
    start = first._thread.start
    monkeypatch.setattr(first._thread, "start", lambda: None)
    for line in fresh.lines:
        line.__enter__()
    if rank == 0:  # its thread is ended before it looks once
        first._closing.set()
        start()
        leave(first, ValueError("early"))
    else:
        leave(fresh.lines[rank], ValueError("early"))
        start()
    for other in {0, 1, 2} - {rank}:
        assert fresh.cause(other).endswith(": ValueError: early")
    for line in fresh.lines:
        line._closing.set()


# Rule: an error that is not a consequence of the loss stays what it is.
def test_an_own_error_is_not_replaced(group: Group) -> None:
    leave(group.lines[2], ValueError("x"))
    group.cause(1)
    error = DataError("a.jsonl:3: cut")
    assert leave(group.lines[1], error) is error


# Rule: a connection that ends without a farewell is a death; the cause is printed once, by rank 0.
def test_a_lost_connection_is_a_death(group: Group) -> None:
    dead = group.lines[2]
    dead._closing.set()
    dead._thread.join()
    dead._lines[0].connection.close()
    for rank in (0, 1):
        assert DIED in group.cause(rank)
        assert group.cause(rank).startswith("rank 2 (process ")
    assert [leave(group.lines[r], RuntimeError("x")).elsewhere for r in (0, 1)] == [False, True]


# Rule: when rank 0 is gone all others know at once, and the lowest of them prints it.
def test_without_rank_0_all_stop(group: Group) -> None:
    first = group.lines[0]
    first._closing.set()
    first._thread.join()
    for line in first._lines:
        line.connection.close()
    for rank in (1, 2):
        assert group.cause(rank).startswith("rank 0")
    assert [leave(group.lines[r], RuntimeError("x")).elsewhere for r in (1, 2)] == [False, True]


# Rule: a main thread that hangs in a collective call is ended after a moment, and the cause is noted before.
def test_a_process_that_hangs_is_ended(group: Group, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    ended = threading.Event()
    codes: list[int] = []
    monkeypatch.setattr(lifeline, "GRACE", 0.01)
    monkeypatch.setattr(lifeline.os, "_exit", lambda code: (codes.append(code), len(codes) == 2 and ended.set()))
    leave(group.lines[2], ValueError("x"))
    assert ended.wait(30)
    assert codes == [1, 1]
    assert sorted(group.lost) == [0, 1]
    assert "ValueError: x" in str(group.lost[1])


# Rule: a process that was frozen itself, as a whole job is when a laptop sleeps, does not accuse the others.
def test_who_was_frozen_itself_accuses_nobody(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = lifeline.time.monotonic
    monkeypatch.setattr(lifeline.time, "monotonic", lambda: clock() + 3600)
    for line in group.lines:
        line._thread.join(3 * lifeline.LOOK)
    assert [line.cause for line in group.lines] == ["", "", ""]
    assert [leave(line) for line in group.lines] == [None, None, None]


# Rule: strangers at the port are sent away.
def test_a_stranger_is_not_heard(group: Group) -> None:
    port = group.opened["place"][0]
    for text in (b'{"token": "wrong", "rank": 1}\n', b"GET / HTTP/1.0\r\n\r\n", b'{"cause": "x"}\n', b"[]\n"):
        with socket.create_connection(("localhost", port)) as stranger:
            stranger.sendall(text)
            stranger.settimeout(30)
            assert stranger.recv(100) == b""
    assert [line.cause for line in group.lines] == ["", "", ""]
    assert [leave(line) for line in group.lines] == [None, None, None]


@pytest.mark.parametrize("text", ["soon", "0.5", "-3", "nan", "1e9"])
def test_a_timeout_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENGI_RANK_TIMEOUT", text)
    with pytest.raises(InputError, match=f"SENGI_RANK_TIMEOUT is '{text}': give seconds"):
        rank_timeout()
