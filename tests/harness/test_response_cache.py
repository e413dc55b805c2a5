"""Known answers: only whole ones, only of the same model, and an interrupted evaluation continues."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import warm
from tests.harness import resumed_program
from tests.harness.requests import scored, written
from tests.harness.resumed_program import PAIRS, evaluate
from tests.model.tiny_folder import write_tiny_folder

from sengi.errors import StorageError
from sengi.harness.lm import SengiLM
from sengi.harness.response_cache import ResponseCache, request_key
from sengi.storage import AppendLog

MODEL = {"weights": "abc", "dtype": "float32"}
IDS = st.lists(st.integers(0, 2**31), max_size=6)
QUESTION = st.tuples(
    st.sampled_from(["loglikelihood", "generate"]),
    st.tuples(IDS, IDS),
    st.dictionaries(st.sampled_from("ab"), st.text()),
)


def quiet(done: int, total: int, kind: str) -> None:
    """No progress bar."""


def filled(root: Path, answers: dict[str, object], model: dict = MODEL, rank: int = 0) -> ResponseCache:
    cache = ResponseCache(root, model, rank)
    with cache.writing():
        for key, answer in answers.items():
            cache.put(key, answer)
    return cache


@settings(max_examples=50)
@given(QUESTION, QUESTION)
def test_other_questions_have_other_names(one: tuple, other: tuple) -> None:
    # [1], [2, 3] and [1, 2], [3] are other questions, though the tokens are the same
    assert (request_key(MODEL, *one) == request_key(MODEL, *other)) == (one == other)


def test_another_model_has_other_names_and_another_folder(tmp_path: Path) -> None:
    other = MODEL | {"dtype": "bfloat16"}
    assert request_key(MODEL, "generate", [[1]], {}) != request_key(other, "generate", [[1]], {})
    filled(tmp_path, {"key": "answer"})
    assert ResponseCache(tmp_path, other).known({"key"}) == {}
    assert ResponseCache(tmp_path, MODEL).known({"key"}) == {"key": "answer"}


ANSWER = st.one_of(st.text(), st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.booleans()).map(list))


@given(st.dictionaries(st.text(min_size=1), ANSWER, max_size=5))
def test_answers_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, answers: dict) -> None:
    cache = filled(tmp_path_factory.mktemp("cache"), answers)
    assert cache.known(answers) == answers
    assert cache.known({"something else entirely"} - set(answers)) == {}


def test_all_processes_know_what_one_wrote(tmp_path: Path) -> None:
    filled(tmp_path, {"a": "1"}, rank=0)
    filled(tmp_path, {"b": "2"}, rank=3)
    assert ResponseCache(tmp_path, MODEL, 1).known({"a", "b", "c"}) == {"a": "1", "b": "2"}


def test_a_damaged_line_is_never_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = filled(tmp_path, {"a": [-1.5, True], "b": [-2.5, False]})
    [path] = cache.folder.glob("answers-*.jsonl")
    whole = path.read_bytes()
    for position in range(len(whole) - 1):
        # every single flipped bit of a line is found; the other line is still good
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        known = cache.known({"a", "b"})
        assert all({"a": [-1.5, True], "b": [-2.5, False]}[key] == answer for key, answer in known.items())
        assert len(known) < 2 or json.loads(damaged.splitlines()[0]) == json.loads(whole.splitlines()[0])
    assert "damaged lines are not used, their questions are asked again" in caplog.text


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    cache = filled(tmp_path, {"a": "1", "b": "2"})
    [path] = cache.folder.glob("answers-*.jsonl")
    path.write_bytes(path.read_bytes()[:-5])
    assert (cache.known({"a", "b"}), cache.damaged) == ({"a": "1"}, 0)
    filled(tmp_path, {"c": "3"})
    assert (cache.known({"a", "b", "c"}), cache.damaged) == ({"a": "1", "c": "3"}, 0)


def test_an_answer_needs_an_open_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"outside writing\(\)"):
        ResponseCache(tmp_path, MODEL).put("a", "b")


def test_infinite_scores_are_not_kept(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "model")
    lm = SengiLM(folder, device="cpu", cache=tmp_path / "cache", progress=quiet)
    never = torch.tensor([lm.tok_encode(" dog")[0]])
    lm.model.lm_head.register_forward_hook(lambda module, given, logits: logits.index_fill(-1, never, -math.inf))
    answers = lm.loglikelihood(scored(("a", " dog"), ("a", " cat")))
    assert answers[0] == (-math.inf, False)
    lm.loglikelihood(scored(("a", " dog"), ("a", " cat")))
    assert (lm.answering.computed, lm.answering.served) == (3, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


def lines(cache: Path) -> list[bytes]:
    return [line for path in cache.rglob("answers-*.jsonl") for line in path.read_bytes().splitlines()]


def test_a_killed_evaluation_continues(folder: Path, tmp_path: Path) -> None:
    uninterrupted = evaluate(folder, tmp_path / "other", 0)
    total = uninterrupted["computed"]
    assert uninterrupted["served"] == 0

    # a real process, killed hard while it writes texts, after all log-likelihoods and some texts
    killed = warm.run(["-m", resumed_program.__name__, str(folder), str(tmp_path / "cache"), str(len(PAIRS) + 2)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = len(lines(tmp_path / "cache"))
    assert len(PAIRS) < kept < total

    # what was answered before is not asked again, and nothing else is different
    resumed = evaluate(folder, tmp_path / "cache", 0)
    assert (resumed["served"], resumed["computed"]) == (kept, total - kept)
    assert _numbers(resumed) == pytest.approx(_numbers(uninterrupted), abs=1e-4)  # other batches round another way
    assert resumed["answers"][1] == uninterrupted["answers"][1]

    # a third time nothing is computed, and the answers are the same bit for bit
    third = evaluate(folder, tmp_path / "cache", 0)
    assert (third["computed"], third["answers"]) == (0, resumed["answers"])


def _numbers(result: dict) -> list[float]:
    return [pair[0] for pair in result["answers"][0]] + result["answers"][2]


def test_another_model_in_the_same_place_is_asked_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    asked = scored(("a", " dog")), written("a dog", max_gen_toks=4)
    for seed, computed in ((0, 2), (0, 0), (1, 2)):
        model = write_tiny_folder(tmp_path / "model", seed)
        lm = SengiLM(model, device="cpu", cache=cache, progress=quiet)
        lm.loglikelihood(asked[0])
        lm.generate_until(asked[1])
        assert lm.answering.computed == computed
    # nor is an answer taken over to another type, or to a tokenizer that reads and writes otherwise
    other_type = SengiLM(model, device="cpu", dtype=torch.float64, cache=cache, progress=quiet)
    other_type.loglikelihood(asked[0])
    assert other_type.answering.served == 0
    (model / "tokenizer_config.json").write_text((model / "tokenizer_config.json").read_text() + "\n")
    other_tokenizer = SengiLM(model, device="cpu", cache=cache, progress=quiet)
    other_tokenizer.generate_until(asked[1])
    assert other_tokenizer.answering.served == 0


def test_a_log_of_lines_is_what_lies_on_disk(tmp_path: Path) -> None:
    # storage.AppendLog is the writer: a line is whole or cut off, and people can read it
    cache = filled(tmp_path, {"a": "ä"})
    [path] = cache.folder.glob("answers-*.jsonl")
    assert AppendLog(path).torn_bytes == 0
    assert json.loads(path.read_text()).keys() == {"key", "answer", "check"}
    assert json.loads((cache.folder / "model.json").read_text()) == MODEL
