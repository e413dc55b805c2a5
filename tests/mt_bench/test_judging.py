from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.mt_bench.bench_folder import ANSWERS, make_options, read_jsonl, write_bench
from tests.mt_bench.judge_server import Asked, JudgeServer, Say

from sengi.errors import InputError, SengiError
from sengi.mt_bench import client
from sengi.mt_bench.files import Bench, load_bench
from sengi.mt_bench.judge import Judged, check_judge, judge_answers
from sengi.mt_bench.options import MTBenchOptions
from sengi.mt_bench.requests import choose_repeats, plan_requests

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return load_bench(write_bench(tmp_path / "data"), "judge")


def judge(bench: Bench, options: MTBenchOptions, name: str = "tiny", answers: Any = None) -> Judged:
    return judge_answers(bench, answers or ANSWERS, name, options)


def ratings(judged: Judged) -> dict[tuple[Any, int, int], float | None]:
    return {(j.question_id, j.turn, j.repeat): j.rating.score for j in judged.judgements}


def test_every_turn_is_judged_with_its_prompt_and_written_as_fastchat_does(tmp_path: Path, bench: Bench) -> None:
    with JudgeServer(lambda asked, _: Say(f"[[{7 if 'second' in asked.user else 8.5}]]")) as server:
        judged = judge(bench, make_options(tmp_path, server.url))
    assert [(j.question_id, j.turn, j.rating.score) for j in judged.judgements] == [
        (number, turn, score) for number in (81, 111, 91, 141) for turn, score in ((1, 8.5), (2, 7.0))
    ]
    rows = {(r["question_id"], r["turn"]): r for r in read_jsonl(tmp_path / "out/model_judgment/judge_single.jsonl")}
    assert len(rows) == 8
    row = rows[111, 2]
    assert row.pop("tstamp") == pytest.approx(time.time(), abs=600)
    assert row == {
        "question_id": 111,
        "model": "tiny",
        "judge": ["judge", "single-math-v1-multi-turn"],
        "user_prompt": "ref It is 42. It is 84.\nWhat is 12 + 30?\nfirst of 111\nAnd twice that?\n<second of 111>",
        "judgment": "[[7]]",
        "score": 7,
        "turn": 2,
    }
    assert isinstance(row["score"], int)
    assert rows[81, 1]["score"] == 8.5
    assert rows[81, 1]["judge"] == ["judge", "single-v1"]
    assert [message["role"] for message in server.asked[0].body["messages"]] == ["system", "user"]


def test_what_cannot_be_read_is_minus_one_in_the_file_and_no_score_here(tmp_path: Path, bench: Bench) -> None:
    says = {
        "<first of 81>": Say("I like it a lot."),
        "<second of 81>": Say("[[15]]"),
        "<first of 111>": Say("", status=400, code="context_length_exceeded"),
        "<second of 111>": Say("so " * 9, finish_reason="length"),
        "<first of 91>": Say(None),
    }
    options = make_options(tmp_path, "http://127.0.0.1:1/v1")

    def behave(asked: Asked, _: int) -> Say:
        return next((say for part, say in says.items() if part in asked.user), Say("[[6]]"))

    with JudgeServer(behave) as server:
        judged = judge(bench, make_options(tmp_path, server.url))
    reasons = {(j.question_id, j.turn): j.rating.reason for j in judged.judgements if j.rating.score is None}
    assert reasons == {
        (81, 1): "no rating",
        (81, 2): "rating out of 1 to 10",
        (111, 1): "longer than the judge's context",
        (111, 2): "no rating within 2,048 tokens",
        (91, 1): "empty judgement",
    }
    # Rule: FastChat's show_result.py leaves out -1, so its mean and ours rest on the same judgements.
    rows = read_jsonl(options.output / "model_judgment/judge_single.jsonl")
    assert Counter(row["score"] for row in rows) == {-1: 5, 6: 3}
    assert {row["judgment"] for row in rows if (row["question_id"], row["turn"]) == (111, 1)} == {"$ERROR$"}
    # Rule: nonsense is not asked again in the same run.
    assert len(server.asked) == 8


@pytest.mark.parametrize("concurrency", [1, 3])
def test_never_more_requests_at_once_than_asked_for(tmp_path: Path, bench: Bench, concurrency: int) -> None:
    def behave(_: Asked, before: int) -> Say:
        return Say("busy", status=503, seconds=0.05) if before == 0 else Say(seconds=0.05)

    with JudgeServer(behave) as server:
        judged = judge(bench, make_options(tmp_path, server.url, concurrency=concurrency))
    assert server.most_in_flight == concurrency
    assert judged.retries == {"HTTP 503": 8}


def test_a_second_run_asks_nothing_and_needs_no_judge(tmp_path: Path, bench: Bench) -> None:
    with JudgeServer(lambda *_: Say("[[3]]")) as server:
        options = make_options(tmp_path, server.url, repeat_share=0.5)
        first = judge(bench, options)
    assert len(server.asked) == 12
    again = judge(bench, options)  # the server is gone
    assert ratings(again) == ratings(first)
    # Rule: FastChat's mean counts every row, so none stands there twice, and repeats are in a file of their own.
    folder = tmp_path / "out/model_judgment"
    assert len(read_jsonl(folder / "judge_single.jsonl")) == 8
    assert len(read_jsonl(folder / "judge_repeat.jsonl")) == 4


def test_another_answer_prompt_judge_or_address_is_another_judgement(tmp_path: Path, bench: Bench) -> None:
    with JudgeServer(lambda *_: Say()) as server, JudgeServer(lambda *_: Say()) as other:
        judge(bench, make_options(tmp_path, server.url))
        judge(bench, make_options(tmp_path, server.url), answers={**ANSWERS, 81: ("new first", "second of 81")})
        assert len(server.asked) == 10  # the second turn's prompt shows the first answer too
        judge(bench, make_options(tmp_path, server.url, judge_model="org/better"))
        assert len(server.asked) == 18
        judge(bench, make_options(tmp_path, other.url))
        assert len(other.asked) == 8
    assert {path.name for path in (tmp_path / "out/model_judgment").iterdir()} == {
        f"{name}_{kind}.jsonl" for name in ("judge", "org__better") for kind in ("single", "repeat")
    }


def test_rows_of_other_models_stay(tmp_path: Path, bench: Bench) -> None:
    with JudgeServer(lambda *_: Say()) as server:
        for name in ("one", "two", "one"):
            judge(bench, make_options(tmp_path, server.url), name)
    rows = read_jsonl(tmp_path / "out/model_judgment/judge_single.jsonl")
    assert Counter(row["model"] for row in rows) == {"one": 8, "two": 8}
    # Rule: the same answer to the same question needs one judgement, whoever gave it.
    assert len(server.asked) == 8


def test_when_the_judge_goes_down_all_it_said_is_kept(tmp_path: Path, bench: Bench) -> None:
    count = 0

    def behave(asked: Asked, _: int) -> Say:
        nonlocal count
        count += 1
        return Say() if count <= 5 else Say("gone", status=502)

    with JudgeServer(behave) as server:
        options = make_options(tmp_path, server.url, concurrency=1, max_retries=1)
        with pytest.raises(SengiError, match=r"failed 2 time\(s\).*then run the same command again") as caught:
            judge(bench, options)
        assert not isinstance(caught.value, InputError)
        assert len(read_jsonl(tmp_path / "out/model_judgment/judge_single.jsonl")) == 5
        server.behave = lambda *_: Say()
        judged = judge(bench, options)
    assert len(server.asked) == 5 + 2 + 3
    assert None not in ratings(judged).values()


def test_a_killed_judging_goes_on_and_asks_nothing_twice(tmp_path: Path, bench: Bench) -> None:
    # Rule: kill -9 while two requests are under way; what was answered before is never asked again.
    gate, held = threading.Event(), threading.Semaphore(0)
    count = 0

    def behave(asked: Asked, _: int) -> Say:
        nonlocal count
        count += 1
        if count > 6 and not gate.is_set():
            held.release()
            gate.wait(60)
            return Say(drop=True)
        return Say(f"[[{1 + count % 10}]]")

    with JudgeServer(behave) as server:
        command = [sys.executable, str(Path(__file__).with_name("judge_program.py")), str(tmp_path), server.url]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-very-secret-key-123"}
        process = subprocess.Popen(command, env=environment)
        try:
            assert held.acquire(timeout=60)
            assert held.acquire(timeout=60)
        finally:
            process.kill()
            process.wait()
        said = read_jsonl(tmp_path / "out/cache/judgements/judge.jsonl")
        assert len(said) == 6
        gate.set()
        asked_before = len(server.asked)
        judged = judge(bench, make_options(tmp_path, server.url, repeat_share=1.0))
        asked_again = len(server.asked) - asked_before
    assert asked_again == 16 - 6
    assert None not in ratings(judged).values()
    for kind in ("single", "repeat"):
        rows = read_jsonl(tmp_path / f"out/model_judgment/judge_{kind}.jsonl")
        assert len({(row["question_id"], row["turn"]) for row in rows}) == len(rows) == 8
    kept = {(row["question_id"], row["turn"], row["repeat"]): row["judgment"] for row in said}
    for (number, turn, repeat), judgment in kept.items():
        assert f"[[{ratings(judged)[number, turn, repeat]:g}]]" == judgment
    # Rule: the key is in no file.
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"very-secret" not in path.read_bytes()


def test_a_line_torn_by_a_crash_is_asked_again(tmp_path: Path, bench: Bench) -> None:
    with JudgeServer(lambda *_: Say()) as server:
        options = make_options(tmp_path, server.url)
        judge(bench, options)
        for path in ("cache/judgements/judge.jsonl", "model_judgment/judge_single.jsonl"):
            whole = (options.output / path).read_bytes()
            (options.output / path).write_bytes(whole[:-20])
        judge(bench, options)
    assert len(server.asked) == 9
    assert len(read_jsonl(options.output / "model_judgment/judge_single.jsonl")) == 8


def test_judging_inside_a_running_event_loop(tmp_path: Path, bench: Bench) -> None:
    # Rule: a notebook has a loop of its own running.
    async def cell(options: MTBenchOptions) -> Judged:
        return judge(bench, options)

    with JudgeServer(lambda *_: Say("[[9]]")) as server:
        judged = asyncio.run(cell(make_options(tmp_path, server.url)))
    assert set(ratings(judged).values()) == {9.0}


def test_a_judge_that_is_not_there_is_found_out_first(tmp_path: Path) -> None:
    options = make_options(tmp_path, "http://127.0.0.1:9/v1")
    check_judge(options, reach=False)
    with pytest.raises(InputError, match="no judge answers there"):
        check_judge(options, reach=True)


def test_questions_without_answers_are_not_asked(bench: Bench, tmp_path: Path) -> None:
    options = make_options(tmp_path, "http://127.0.0.1:9/v1", repeat_share=1.0)
    requests = plan_requests(bench, {141: ANSWERS[141]}, options)
    assert [(r.question.id, r.turn, r.repeat) for r in requests] == [(141, 1, 0), (141, 2, 0), (141, 1, 1), (141, 2, 1)]
    assert len({request.key for request in requests}) == 4


@given(st.sets(st.integers(0, 500), max_size=80), st.floats(0, 1))
def test_the_repeated_share(numbers: set[int], share: float) -> None:
    # Rule: as many as asked for, rounded up; the order of the questions does not matter; a larger share adds to it.
    turns = [(number, turn) for number in sorted(numbers) for turn in (1, 2)]
    chosen = choose_repeats(turns, share)
    assert share * len(turns) <= len(chosen) <= share * len(turns) + 1
    assert set(chosen) <= set(turns)
    assert chosen == choose_repeats(turns[::-1], share)
    assert chosen == choose_repeats(turns, 1.0)[: len(chosen)]


def test_a_cache_line_is_plain_json(tmp_path: Path, bench: Bench) -> None:
    with JudgeServer(lambda *_: Say("ünïcode [[2]]")) as server:
        judge(bench, make_options(tmp_path, server.url))
    line = (tmp_path / "out/cache/judgements/judge.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(line)["judgment"] == "ünïcode [[2]]"
    assert "ünïcode" in line
