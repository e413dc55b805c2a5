"""Several processes answer the requests of one evaluation: fair shares, neighbours together, all get all."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import warm
from tests.harness import rank_program
from tests.harness.requests import request, scored, written
from tests.harness.resumed_program import PAIRS, PROMPTS
from tests.model.tiny_folder import write_tiny_folder

from sengi.harness.lm import SengiLM
from sengi.harness.ranks import Alone, deal_out, join_ranks

TOKENS = st.lists(st.lists(st.integers(0, 2**31), min_size=1, max_size=5), max_size=12)


@given(TOKENS, st.integers(1, 4))
def test_every_request_is_dealt_out_once(tokens: list[list[int]], size: int) -> None:
    places = [3 * number for number in range(len(tokens))]
    shares = deal_out(places, lambda place: tokens[place // 3], size)
    assert len(shares) == size
    assert sorted(place for share in shares for place in share) == places
    assert all(share == sorted(share) for share in shares)


@given(TOKENS, st.integers(1, 4))
def test_shares_follow_the_order_of_the_tokens(tokens: list[list[int]], size: int) -> None:
    # requests with a common beginning are neighbours in that order, so at most one cut goes through them
    shares = deal_out(range(len(tokens)), tokens.__getitem__, size)
    ends = [(min(tokens[i] for i in share), max(tokens[i] for i in share)) for share in shares if share]
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(ends))


def test_work_is_counted_without_what_is_shared() -> None:
    # 40 questions of 10 tokens under a common prompt of 1,000 are less work than 3 texts of 1,000 of their own
    shared = [[7] * 1000 + [number] * 10 for number in range(1, 41)]
    own = [[number] * 1000 for number in (100, 101, 102)]
    tokens = shared + own
    first, second = deal_out(range(43), tokens.__getitem__, 2)
    assert set(range(40)) <= set(first)
    assert len(second) in (1, 2)


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_ranks() == Alone()
    assert Alone().together(lambda: 5) == [5]


def run_together(*arguments: str) -> list[dict]:
    done = warm.run(["-m", rank_program.__name__, *arguments], ranks=2)
    assert done.returncode == 0, done.stderr
    return sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda result: result["rank"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


def test_two_processes_share_the_work_and_both_have_all(folder: Path, tmp_path: Path) -> None:
    alone = SengiLM(folder, device="cpu", progress=lambda *now: None)
    expected = alone.loglikelihood(scored(*PAIRS, ("a dog" * 300, " barks")))
    texts = alone.generate_until(written(*PROMPTS, max_gen_toks=8))
    rolling = alone.loglikelihood_rolling([request("loglikelihood_rolling", prompt) for prompt in PROMPTS])

    first, second = run_together(str(folder), str(tmp_path))
    assert first["answers"] == second["answers"]
    assert [pair[0] for pair in first["answers"][0]] == pytest.approx([pair[0] for pair in expected], abs=1e-4)
    assert [pair[1] for pair in first["answers"][0]] == [greedy for _, greedy in expected]
    assert first["answers"][1] == texts
    assert first["answers"][2] == pytest.approx(rolling, abs=1e-4)
    assert first["truncated"] == second["truncated"] == [list(cut) for cut in alone.truncated]
    # nobody did all of it, and together hardly more than one alone
    whole = alone._scorer.tokens_computed
    assert min(first["tokens"], second["tokens"]) > 0
    assert max(first["tokens"], second["tokens"]) < whole <= first["tokens"] + second["tokens"] < 1.5 * whole
    # another number of processes goes on with what these wrote
    resumed = SengiLM(folder, device="cpu", cache=tmp_path, progress=lambda *now: None)
    assert [list(pair) for pair in resumed.loglikelihood(scored(*PAIRS))] == first["answers"][0][:-1]
    assert resumed.answering.computed == 0

    # what fails on one process fails on all, with its own words
    errors = [first["failed"], second["failed"]]
    assert [(error["kind"], error["elsewhere"]) for error in errors] == [
        ("NonFiniteError", True),
        ("NonFiniteError", False),
    ]
    assert errors[0]["message"] == errors[1]["message"]
