from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.model.tiny_folder import tiny_tokenizer, write_tiny_folder
from tests.mt_bench.bench_folder import read_jsonl, write_bench

from sengi.errors import ModelError
from sengi.inference.generation_request import GenerationRequest
from sengi.inference.prompts import folder_stop_ids, stop_ids
from sengi.model.load import load_model, load_tokenizer
from sengi.model.tokenizer_files import save_tokenizer
from sengi.mt_bench import answers
from sengi.mt_bench.answers import Answered, answer_bench
from sengi.mt_bench.files import BenchQuestion, load_bench
from sengi.mt_bench.names import model_name


class Echo:
    """Stands for the generator where only what is asked, kept and written matters: answers with a running number."""

    asked: list[GenerationRequest]
    stop_after: int

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        pass

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        batch_tokens: int,
        on_generated: Callable[[list[int], list[str]], None],
    ) -> list[str]:
        texts = []
        for index, request in reversed(list(enumerate(requests))):  # the longest first, so not in order
            if len(Echo.asked) == Echo.stop_after:
                raise KeyboardInterrupt
            Echo.asked.append(request)
            texts.append(f" answer {len(Echo.asked)}\n")
            on_generated([index], [texts[-1]])
        return texts[::-1]


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> type[Echo]:
    monkeypatch.setattr(answers, "Generator", Echo)
    Echo.asked, Echo.stop_after = [], 10**9
    return Echo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def questions(tmp_path: Path) -> tuple[BenchQuestion, ...]:
    return load_bench(write_bench(tmp_path / "data"), "judge").questions


def texts(requests: Sequence[GenerationRequest]) -> list[str]:
    tokenizer = tiny_tokenizer()
    return [str(tokenizer.decode(request.prompt)) for request in requests]


def test_the_second_turn_sees_the_models_own_first_answer(
    tmp_path: Path, folder: Path, questions: tuple[BenchQuestion, ...], echo: type[Echo]
) -> None:
    calls: list[tuple[int, int, str]] = []
    answered = answer_bench(folder, questions, tmp_path / "out", progress=lambda *call: calls.append(call))
    prompts = texts(echo.asked)
    assert prompts[3] == "<|im_start|>user\nWrite about Rome.<|im_end|>\n<|im_start|>assistant\n"
    # Rule: the answer is stripped, as FastChat's is, before it becomes a turn.
    assert prompts[7] == (
        "<|im_start|>user\nWrite about Rome.<|im_end|>\n<|im_start|>assistant\nanswer 4<|im_end|>\n"
        "<|im_start|>user\nNow in one line.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert answered.answers[81] == ("answer 4", "answer 8")
    assert calls == [(done, 8, "mt_bench answers") for done in range(1, 9)]


def test_temperatures_are_fastchats_and_every_turn_has_its_seed(
    tmp_path: Path, folder: Path, questions: tuple[BenchQuestion, ...], echo: type[Echo]
) -> None:
    other = BenchQuestion(7, "cooking", ("Boil.", "Fry."))
    answer_bench(folder, (*questions, other), tmp_path / "out")
    by_turn = [echo.asked[:5][::-1], echo.asked[5:][::-1]]
    for requests in by_turn:
        assert [request.temperature for request in requests] == [0.7, 0.0, 0.7, 0.1, 0.7]
    assert len({request.seed for request in echo.asked}) == 10
    seeds = [request.seed for request in echo.asked]
    answer_bench(folder, (*questions, other), tmp_path / "elsewhere")
    assert [request.seed for request in echo.asked[10:]] == seeds


def test_answers_are_written_as_fastchat_does(
    tmp_path: Path, folder: Path, questions: tuple[BenchQuestion, ...], echo: type[Echo]
) -> None:
    answer_bench(folder, questions, tmp_path / "out")
    rows = read_jsonl(tmp_path / "out/model_answer/tiny.jsonl")
    assert {row["question_id"] for row in rows} == {81, 111, 91, 141}
    for row in rows:
        assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
        assert row["model_id"] == "tiny"
        assert [list(choice) for choice in row["choices"]] == [["index", "turns"]]
        assert len(row["choices"][0]["turns"]) == 2
    assert len({row["answer_id"] for row in rows}) == 4


@pytest.mark.parametrize("stop_after", [0, 2, 4, 6])
def test_an_interrupted_answering_goes_on(
    tmp_path: Path, folder: Path, questions: tuple[BenchQuestion, ...], echo: type[Echo], stop_after: int
) -> None:
    echo.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        answer_bench(folder, questions, tmp_path / "out")
    # Rule: a question is in FastChat's file as soon as both its turns are answered.
    assert len(read_jsonl(tmp_path / "out/model_answer/tiny.jsonl")) == max(0, stop_after - 4)
    echo.stop_after = 10**9
    answered = answer_bench(folder, questions, tmp_path / "out")
    assert len(echo.asked) == 8
    assert len(set(texts(echo.asked))) == 8
    again = answer_bench(folder, questions, tmp_path / "out")
    assert len(echo.asked) == 8
    assert again == answered
    rows = read_jsonl(tmp_path / "out/model_answer/tiny.jsonl")
    assert {row["question_id"]: tuple(row["choices"][0]["turns"]) for row in rows} == answered.answers
    assert len(rows) == 4


def test_a_finished_answering_does_not_load_the_model(
    tmp_path: Path,
    folder: Path,
    questions: tuple[BenchQuestion, ...],
    echo: type[Echo],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = answer_bench(folder, questions, tmp_path / "out")
    monkeypatch.delattr(answers, "load_model")
    assert answer_bench(folder, questions, tmp_path / "out").answers == first.answers


def test_an_edited_question_is_asked_again_and_the_others_are_not(
    tmp_path: Path, folder: Path, questions: tuple[BenchQuestion, ...], echo: type[Echo]
) -> None:
    answer_bench(folder, questions, tmp_path / "out")
    edited = BenchQuestion(81, "writing", ("Write about Paris.", "Now in one line."))
    answered = answer_bench(folder, (edited, *questions[1:]), tmp_path / "out")
    assert len(echo.asked) == 10
    rows = read_jsonl(tmp_path / "out/model_answer/tiny.jsonl")
    assert [r["choices"][0]["turns"] for r in rows if r["question_id"] == 81] == [list(answered.answers[81])]
    # Rule: a run with --limit leaves the rows of the other questions where they are.
    answer_bench(folder, questions[1:2], tmp_path / "out")
    assert len(read_jsonl(tmp_path / "out/model_answer/tiny.jsonl")) == 4


# The same weights asked the same go on for longer, or end sooner: these are other answers.
def test_answers_that_ended_at_other_tokens_are_asked_again(
    tmp_path: Path, questions: tuple[BenchQuestion, ...], echo: type[Echo]
) -> None:
    folder = write_tiny_folder(tmp_path / "model")
    answer_bench(folder, questions, tmp_path / "out")
    config = json.loads((folder / "generation_config.json").read_text())
    asked = [8]
    for eos in ([2], [3, 2], [2, 3], None):
        (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": eos}))
        answer_bench(folder, questions, tmp_path / "out")
        asked.append(len(echo.asked))
    # the template's own end is 2 already; an order is no difference; and what is known is not asked again
    assert asked == [8, 8, 16, 16, 16]
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token = "<|endoftext|>"
    save_tokenizer(tokenizer, folder)
    answer_bench(folder, questions, tmp_path / "out")
    assert len(echo.asked) == 24


def test_another_model_of_the_same_name_never_gets_these_answers(
    tmp_path: Path, folder: Path, questions: tuple[BenchQuestion, ...], echo: type[Echo]
) -> None:
    answer_bench(folder, questions, tmp_path / "out")
    other = write_tiny_folder(tmp_path / "elsewhere" / "tiny", seed=1)
    answered = answer_bench(other, questions, tmp_path / "out")
    assert len(echo.asked) == 16
    assert answered.model_name.startswith("tiny-")
    assert "tiny.jsonl holds answers of another model; these are tiny-" in answered.notes[0]
    assert answer_bench(other, questions, tmp_path / "out").model_name == answered.model_name
    assert answer_bench(folder, questions, tmp_path / "out").model_name == "tiny"
    assert len(echo.asked) == 16
    assert {row["model_id"] for row in read_jsonl(tmp_path / f"out/model_answer/{answered.model_name}.jsonl")} == {
        answered.model_name
    }


def test_answers_that_fastchat_wrote_are_not_touched(
    tmp_path: Path, folder: Path, questions: tuple[BenchQuestion, ...], echo: type[Echo]
) -> None:
    foreign = tmp_path / "out/model_answer/tiny.jsonl"
    foreign.parent.mkdir(parents=True)
    foreign.write_text(json.dumps({"question_id": 81, "choices": []}) + "\n")
    before = foreign.read_bytes()
    assert answer_bench(folder, questions, tmp_path / "out").model_name.startswith("tiny-")
    assert foreign.read_bytes() == before


def test_a_question_without_room_is_excluded_by_name(
    tmp_path: Path, folder: Path, questions: tuple[BenchQuestion, ...], echo: type[Echo]
) -> None:
    # Rule: the tiny model has 256 positions; the first answer leaves room for the second question and its answer.
    long = BenchQuestion(7, "stem", ("a fish " * 300, "short"))
    late = BenchQuestion(8, "stem", ("short", "a fish " * 300))
    answered = answer_bench(folder, (long, *questions[:1], late), tmp_path / "out")
    reason = "no room for an answer to turn 1 in the model's context"
    assert answered.excluded == {7: reason, 8: reason}
    assert list(answered.answers) == [81]
    assert answered.shortened == {81}
    first, second = echo.asked
    assert len(first.prompt) + 2 * first.max_new_tokens < 256
    assert second.max_new_tokens == 256 - len(second.prompt) > first.max_new_tokens - 20


def test_an_answer_that_grows_when_it_is_read_again_excludes_its_question(
    tmp_path: Path,
    folder: Path,
    questions: tuple[BenchQuestion, ...],
    echo: type[Echo],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Rule: text decoded from ids can have more tokens when it is encoded again; then turn 2 may not fit after all.
    def generate(self: Echo, requests: Sequence[GenerationRequest], *, on_generated: Any, **_: Any) -> None:
        on_generated([0], ["a fish " * 300])

    monkeypatch.setattr(Echo, "generate", generate)
    answered = answer_bench(folder, questions[:1], tmp_path / "out")
    assert answered.excluded == {81: "no room for an answer to turn 2 in the model's context"}
    assert answered.answers == {}


@pytest.mark.parametrize("eos", [2, [0, 3], None])
def test_a_folder_tells_the_stops_of_its_model(tmp_path: Path, eos: Any) -> None:
    folder = write_tiny_folder(tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": eos}))
    assert folder_stop_ids(folder, tokenizer) == stop_ids(load_model(folder), tokenizer)


def test_the_real_generator_answers(tmp_path: Path, folder: Path, questions: tuple[BenchQuestion, ...]) -> None:
    # Rule: seeds make sampled answers repeatable, whatever is in the batch.
    first = answer_bench(folder, questions, tmp_path / "out")
    assert set(first.answers) == {81, 111, 91, 141}
    assert not first.excluded
    alone = answer_bench(folder, questions[2:3], tmp_path / "alone", batch_tokens=300)
    assert alone.answers[91] == first.answers[91]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/runs/first/checkpoint-20", "first-checkpoint-20"),
        ("/models/My Model (v2)", "My_Model__v2_"),
        ("/hub/models--org--small-lm/snapshots/abc", "org__small-lm"),
    ],
)
def test_names_of_models(path: str, name: str) -> None:
    assert model_name(Path(path)) == name


def test_nothing_is_asked_of_no_questions(tmp_path: Path, folder: Path, echo: type[Echo]) -> None:
    assert answer_bench(folder, (), tmp_path / "out") == Answered("tiny")


def test_a_folder_that_is_no_model_is_refused_before_anything_is_written(
    tmp_path: Path, questions: tuple[BenchQuestion, ...]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        answer_bench(tmp_path / "empty", questions, tmp_path / "out")
    assert not (tmp_path / "out").exists()
