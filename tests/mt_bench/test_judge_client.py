from __future__ import annotations

import asyncio
import email.utils
import itertools
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.mt_bench.bench_folder import make_options
from tests.mt_bench.judge_server import Asked, JudgeServer, Say

from sengi.errors import InputError, SengiError
from sengi.mt_bench import client
from sengi.mt_bench.client import JudgeClient, Refusal, Reply, judge_key, retry_after
from sengi.mt_bench.options import MTBenchOptions

MESSAGES = [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Rate."}]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def script(*says: Say) -> Any:
    """One behaviour a request, the last one for ever."""
    steps = itertools.chain(says, itertools.repeat(says[-1]))
    return lambda asked, before: next(steps)


def ask(options: MTBenchOptions) -> tuple[Reply | Refusal, JudgeClient]:
    async def run() -> tuple[Reply | Refusal, JudgeClient]:
        async with JudgeClient(options) as judge:
            return await judge.ask(MESSAGES, "question 81, turn 2"), judge

    return asyncio.run(run())


def ask_server(tmp_path: Path, *says: Say, **changes: Any) -> tuple[Reply | Refusal, JudgeClient, Sequence[Asked]]:
    with JudgeServer(script(*says)) as server:
        result, judge = ask(make_options(tmp_path, server.url, **changes))
    return result, judge, server.asked


def test_the_request_is_fastchats(tmp_path: Path) -> None:
    result, judge, asked = ask_server(tmp_path, Say("fine [[7]]"))
    assert result == Reply("fine [[7]]")
    assert asked[0].path == "/v1/chat/completions"
    assert asked[0].body == {"model": "judge", "messages": MESSAGES, "temperature": 0.0, "max_tokens": 2048}
    assert not judge.retries


# Rule: what may pass is asked again, and counted under its own name.
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Say("slow down", status=429), "HTTP 429"),
        (Say("oops", status=500), "HTTP 500"),
        (Say("busy", status=503), "HTTP 503"),
        (Say(drop=True), "connection"),
        (Say(cut=True), "connection"),
        (Say(raw=b'{"choices": [{"mess'), "malformed reply"),
        (Say(raw=b"<html>hello</html>"), "malformed reply"),
        (Say(raw=b"[]"), "malformed reply"),
        (Say(raw=b'{"choices": []}'), "malformed reply"),
        (Say(raw=b'{"choices": [{"index": 0}]}'), "malformed reply"),
        (Say(raw=b'{"choices": [{"message": {"content": [1, 2]}}]}'), "malformed reply"),
        (Say(raw=b"<html>", headers={"Content-Type": "text/html"}), "malformed reply"),
        (Say(seconds=2.0), "timeout"),
        (Say(drip=0.1), "timeout"),
    ],
)
def test_a_passing_failure_is_asked_again_and_counted(tmp_path: Path, fault: Say, reason: str) -> None:
    result, judge, asked = ask_server(tmp_path, fault, fault, Say("[[4]]"), timeout=1.0)
    assert result == Reply("[[4]]")
    assert dict(judge.retries) == {reason: 2}
    assert len(asked) == 3


def test_retry_after_is_obeyed(tmp_path: Path) -> None:
    _, _, asked = ask_server(tmp_path, Say("slow down", status=429, headers={"Retry-After": "1"}), Say())
    assert 1.0 <= asked[1].time - asked[0].time < 3.0


def test_waits_double_and_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rule: each wait lies between half of FIRST_WAIT * 2^attempt and the whole of it, up to LONGEST_WAIT.
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(client, "FIRST_WAIT", 1.0)
    with JudgeServer(script(Say("oops", status=500))) as server:
        monkeypatch.setattr(client.asyncio, "sleep", sleep)
        with pytest.raises(SengiError):
            ask(make_options(tmp_path, server.url, max_retries=8))
    assert len(waits) == 8
    for attempt, seconds in enumerate(waits):
        whole = min(60.0, 2.0**attempt)
        assert whole / 2 <= seconds <= whole
    assert len(set(waits)) == 8


def test_a_judge_that_stays_down_is_one_clear_error(tmp_path: Path) -> None:
    with JudgeServer(script(Say("the GPU is on fire", status=503))) as server, pytest.raises(SengiError) as caught:
        ask(make_options(tmp_path, server.url, max_retries=2))
    words = str(caught.value)
    assert "\n" not in words
    for part in (server.url, "failed 3 time(s) on question 81, turn 2", "HTTP 503", "the GPU is on fire"):
        assert part in words
    assert "--judge-url" in words
    assert "kept" in words
    assert len(server.asked) == 3


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nobody_listens(tmp_path: Path) -> None:
    options = make_options(tmp_path, f"http://127.0.0.1:{closed_port()}/v1", max_retries=1)
    with pytest.raises(SengiError, match=r"failed 2 time\(s\) on question 81, turn 2, last by connection"):
        ask(options)

    async def reach() -> None:
        async with JudgeClient(options) as judge:
            await judge.reach()

    with pytest.raises(InputError, match=r"no judge answers there .*--judge-url"):
        asyncio.run(reach())


def test_an_endpoint_without_a_list_of_models_is_reached(tmp_path: Path) -> None:
    async def reach(options: MTBenchOptions) -> None:
        async with JudgeClient(options) as judge:
            await judge.reach()

    with JudgeServer(script(Say())) as server:
        asyncio.run(reach(make_options(tmp_path, server.url)))
    assert not server.asked


# Rule: what no waiting mends is said at once, with the option that mends it.
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            Say("wrong key", status=401),
            "it wants a key: name .* by --judge-key-env",
        ),
        (Say("not yours", status=403), "may do"),
        (Say("no such model", status=404), "--judge-model judge"),
        (Say("pay first", status=429, code="insufficient_quota"), "no quota left"),
        (Say("unknown field 'n'", status=400), "unknown field 'n'.*--judge-model judge"),
    ],
)
def test_a_refusal_for_good_is_an_error_at_once(tmp_path: Path, fault: Say, message: str) -> None:
    with JudgeServer(script(fault)) as server, pytest.raises(InputError, match=message):
        ask(make_options(tmp_path, server.url))
    assert len(server.asked) == 1


# Rule: a request that does not fit is this request's fault only; it is named and the others go on.
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Say("too many", status=400, code="context_length_exceeded"), "longer than the judge's context"),
        (
            Say(
                "'max_tokens' or 'max_completion_tokens' is too large: 2048. This model's maximum context length is "
                "2048 tokens and your request has 300 input tokens",
                status=400,
                param="max_tokens",
            ),
            "longer than the judge's context",
        ),
        (Say("request entity too large", status=413), "longer than the judge's context"),
        (Say("filtered", status=400, code="content_filter"), "refused by the judge's content filter"),
    ],
)
def test_one_request_that_cannot_be_judged_is_a_refusal(tmp_path: Path, fault: Say, reason: str) -> None:
    result, judge, asked = ask_server(tmp_path, fault)
    assert isinstance(result, Refusal)
    assert result.reason == reason
    assert str(fault.text) in result.message
    assert (len(asked), dict(judge.retries)) == (1, {})


def test_a_reasoning_judge_is_asked_in_its_own_way(tmp_path: Path) -> None:
    # Rule: max_tokens and temperature are left out where the endpoint refuses them, and that is noted.
    def behave(asked: Asked, _: int) -> Say:
        if "max_tokens" in asked.body:
            return Say("Use 'max_completion_tokens' instead.", status=400, param="max_tokens")
        if "temperature" in asked.body:
            return Say("Only the default is supported.", status=400, code="unsupported_value", param="temperature")
        return Say("[[8]]")

    with JudgeServer(behave) as server:
        result, judge = ask(make_options(tmp_path, server.url))
    assert result == Reply("[[8]]")
    assert server.asked[-1].body == {"model": "judge", "messages": MESSAGES, "max_completion_tokens": 2048}
    assert len(judge.notes) == 2


def test_a_judgement_that_was_cut_says_so(tmp_path: Path) -> None:
    result, _, _ = ask_server(tmp_path, Say("on and on", finish_reason="length"))
    assert result == Reply("on and on", cut=True)
    # Rule: null content is an empty judgement, not a failure.
    result, _, _ = ask_server(tmp_path, Say(None))
    assert result == Reply("")


def test_the_key_comes_from_the_named_variable_and_is_never_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-very-secret-key-123"
    monkeypatch.setenv("MY_JUDGE_KEY", secret)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-elses")
    refused = script(Say(f"Incorrect API key provided: {secret}", status=401))
    message = r"Incorrect API key provided: \*\*\*.*MY_JUDGE_KEY"
    with JudgeServer(refused) as server, pytest.raises(InputError, match=message) as caught:
        ask(make_options(tmp_path, server.url, judge_api_key_env="MY_JUDGE_KEY"))
    assert server.asked[0].headers["authorization"] == f"Bearer {secret}"
    assert secret not in str(caught.value)
    assert secret not in repr(caught.value.__cause__)


def test_a_key_of_another_service_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rule: the openai package falls back to OPENAI_API_KEY; nobody but OpenAI must get it unasked.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-somebody-elses")
    for name in ("", "NOT_SET"):
        with JudgeServer(script(Say())) as server:
            ask(make_options(tmp_path, server.url, judge_api_key_env=name))
        assert "sk-somebody-elses" not in str(server.asked[0].headers)
    with pytest.raises(InputError, match=r"holds the key of judge\.example"):
        JudgeClient(make_options(tmp_path, "https://judge.example/v1"))
    assert judge_key(make_options(tmp_path, "https://api.openai.com/v1")) == "sk-somebody-elses"


def test_a_missing_key_is_an_error_for_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(InputError, match="--judge-key-env NOT_SET: this environment variable is not set"):
        JudgeClient(make_options(tmp_path, "https://judge.example/v1", judge_api_key_env="NOT_SET"))
    monkeypatch.setenv("NOT_SET", "schlüssel")
    with pytest.raises(InputError, match="not plain ASCII") as caught:
        JudgeClient(make_options(tmp_path, "https://judge.example/v1", judge_api_key_env="NOT_SET"))
    assert "schlüssel" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"Retry-After-Ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "99999999"}, 600.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date() -> None:
    # Rule: a date is in whole seconds of a clock that runs on meanwhile.
    seconds = retry_after({"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)})
    assert seconds is not None
    assert 27 <= seconds <= 31


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'sengi\[eval\]'"):
        JudgeClient(make_options(tmp_path, "http://localhost:1/v1"))
