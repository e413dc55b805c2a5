"""The model class that lm-eval gets: how it is made, what it answers, and what it says aloud."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api.registry import get_model
from tests.harness.requests import plain_loglikelihood, request, scored, written
from tests.model.tiny_folder import tiny_model, tiny_tokenizer, write_tiny_folder
from transformers import AutoModelForCausalLM

from sengi.errors import InputError, ModelError, NonFiniteError
from sengi.harness.lm import SengiLM
from sengi.model.load import load_model


def quiet(done: int, total: int, kind: str) -> None:
    """No progress bar."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def shared_lm(folder: Path) -> SengiLM:
    return SengiLM(folder, device="cpu", batch_tokens=64, progress=quiet)


@pytest.fixture
def lm(folder: Path) -> SengiLM:
    return SengiLM(folder, device="cpu", batch_tokens=64, progress=quiet)


def test_it_is_made_as_lm_eval_makes_models(folder: Path) -> None:
    # the command line's way: a string of arguments, and options of its own beside it
    made = get_model("sengi").create_from_arg_string(
        f"pretrained={folder},batch_tokens=32,add_bos_token=True", {"batch_size": "1", "device": "cpu"}
    )
    assert isinstance(made, SengiLM)
    assert (made.batch_size, made.device, made.rank, made.world_size) == (32, torch.device("cpu"), 0, 1)
    assert made.tokenizer_name == str(folder).replace("/", "__")
    assert made.get_model_info()["model_num_parameters"] == made.model.num_parameters()
    # lm-eval's command line says cuda:0 where the user said nothing; what the user says counts
    made = get_model("sengi").create_from_arg_obj(
        {"pretrained": str(folder), "device": "cpu"}, {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    )
    assert made.device == torch.device("cpu")
    # names of other models are still known after ours was registered
    assert get_model("dummy").__name__ == "DummyLM"


def test_scores_are_those_of_a_plain_forward_call(shared_lm: SengiLM) -> None:
    pairs = [
        ("The capital of France is", " Paris"),
        ("The capital of France is", " Rome."),
        ("The capital of France is ", "Rome."),  # the space belongs to the continuation
        ("What", " is the capital of Spain? A dog, a cat"),
    ]
    answers = shared_lm.loglikelihood(scored(*pairs))
    for (context, continuation), (total, is_greedy) in zip(pairs, answers, strict=True):
        ids = shared_lm.tok_encode(context.rstrip())
        rest = shared_lm.tok_encode(context + continuation)[len(ids) :]
        expected = plain_loglikelihood(shared_lm.model, ids, rest)
        assert (total, is_greedy) == (pytest.approx(expected[0], abs=1e-4), expected[1])
    assert answers[1] == pytest.approx(answers[2])


def test_what_the_model_would_write_is_greedy(shared_lm: SengiLM) -> None:
    prompt = shared_lm.tok_encode("The capital of")
    with torch.no_grad():
        likeliest = int(shared_lm.model(torch.tensor([prompt])).logits[0, -1].argmax())
    triples = [(None, prompt, [likeliest]), (None, prompt, [likeliest ^ 1])]
    assert [greedy for _, greedy in shared_lm._loglikelihood_tokens(triples)] == [True, False]


@pytest.mark.parametrize("context", ["", " ", "\n"])
def test_nothing_before_the_text_is_the_bos_token(shared_lm: SengiLM, context: str) -> None:
    [(total, _)] = shared_lm.loglikelihood(scored((context, " Paris is")))
    rest = shared_lm.tok_encode(context + " Paris is")
    assert total == pytest.approx(plain_loglikelihood(shared_lm.model, [shared_lm.prefix_token_id], rest)[0], abs=1e-4)


def test_bos_is_added_once_and_only_where_asked(folder: Path, shared_lm: SengiLM) -> None:
    bos = shared_lm.tokenizer.bos_token
    with_bos = SengiLM(folder, device="cpu", add_bos_token=True)
    plain = shared_lm.tok_encode("foo bar")
    assert shared_lm.tok_decode(plain) == "foo bar"
    assert with_bos.tok_encode("foo bar") == [with_bos.tokenizer.bos_token_id, *plain]
    assert with_bos.tok_encode(f"{bos}foo bar") == with_bos.tok_encode("foo bar")
    assert with_bos.prompt_ids(f"{bos}foo bar") == with_bos.prompt_ids("foo bar") == with_bos.tok_encode("foo bar")
    assert with_bos.tok_encode("foo bar", add_special_tokens=False) == plain
    assert shared_lm.tok_encode("foo bar", left_truncate_len=1) == plain[-1:]


def test_a_question_longer_than_the_context_is_cut_on_the_left_and_listed(lm: SengiLM) -> None:
    long = "a dog" + " a dog" * 199
    answers = lm.loglikelihood(
        [*scored((long, " barks"), (long, " a fish, a cat")), request("loglikelihood", "a", " b", doc=2)]
    )
    context, rest = lm.tok_encode(long), lm.tok_encode(long + " barks")[len(lm.tok_encode(long)) :]
    expected = plain_loglikelihood(lm.model, context[-(257 - len(rest)) :], rest)
    assert answers[0][0] == pytest.approx(expected[0], abs=1e-4)
    assert [(*cut,) for cut in lm.truncated] == [
        ("task", 0, "loglikelihood", len(context) + len(rest) - 257),
        ("task", 1, "loglikelihood", len(lm.tok_encode(long + " a fish, a cat")) - 257),
    ]
    lm.generate_until(written(long, max_gen_toks=16))
    assert (*lm.truncated[-1],) == ("task", 0, "generate_until", len(context) - 240)
    assert lm.excluded == []


def test_what_cannot_be_scored_is_nan_and_listed(lm: SengiLM) -> None:
    # 257 tokens do not fit in 256; nothing at all cannot be scored; 256 tokens just fit
    one = lm.tok_encode(" dog")
    fits = " dog" * (256 // len(one))
    answers = lm.loglikelihood(scored(("a", fits + " dog"), ("a", ""), ("a", fits), ("", "")))
    assert [math.isnan(total) for total, _ in answers] == [True, True, False, True]
    assert [(entry.doc_id, entry.reason) for entry in lm.excluded] == [
        (0, "the continuation alone is longer than the context of 256 tokens"),
        (1, "the continuation has no tokens of its own"),
        (3, "the continuation has no tokens of its own"),
    ]
    assert [cut.doc_id for cut in lm.truncated] == [2] * (len(lm.tok_encode("a")) > 1)


def test_a_broken_model_is_not_scored(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    model.get_parameter("model.norm.weight").data[:] = float("nan")
    broken = SengiLM(model, tiny_tokenizer(), progress=quiet)
    with pytest.raises(NonFiniteError, match="tiny: the model's log-likelihoods are NaN"):
        broken.loglikelihood(scored(("a", " b")))
    with pytest.raises(NonFiniteError, match="if they only overflow in bfloat16, dtype=float32 helps"):
        SengiLM(model.bfloat16(), tiny_tokenizer(), progress=quiet).generate_until(written("a", max_gen_toks=2))


def test_rolling_predicts_each_token_once(shared_lm: SengiLM) -> None:
    text = "The capital of France is Paris. " * 60
    ids = shared_lm.tok_encode(text)
    assert len(ids) > 256
    [total, nothing] = shared_lm.loglikelihood_rolling([request("loglikelihood_rolling", text) for text in (text, "")])
    # the first window begins at bos and predicts 256 tokens; the next one predicts the rest after 256 of context
    start = [shared_lm.prefix_token_id]
    expected = plain_loglikelihood(shared_lm.model, start, ids[:256])[0]
    position = 256
    while position < len(ids):
        end = min(len(ids), position + 256)
        expected += plain_loglikelihood(shared_lm.model, ids[end - 257 : position], ids[position:end])[0]
        position = end
    assert (total, nothing) == (pytest.approx(expected, abs=1e-3), 0)


def test_stop_texts_and_lengths_are_the_tasks(shared_lm: SengiLM) -> None:
    [whole] = shared_lm.generate_until(written("The capital", max_gen_toks=12))
    assert len(whole) > 4
    stop = whole[3]
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens"):
        assert shared_lm.generate_until(written("The capital", until=[stop], **{name: 12})) == [whole.split(stop)[0]]
    # one string instead of a list, and a length of prompt and answer together
    assert shared_lm.generate_until(written("The capital", until=stop, max_gen_toks=12)) == [whole.split(stop)[0]]
    prompt = len(shared_lm.tok_encode("The capital"))
    assert shared_lm.generate_until(written("The capital", max_gen_toks=100, max_length=prompt + 12)) == [whole]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 are not supported; run this task with --model hf"),
        ({"do_sample": True, "temperature": 1.0, "top_k": 5}, "top_k=5 are not supported"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"do_sample": True}, "do_sample=true with temperature=0; set temperature above 0"),
        ({"max_gen_toks": 256}, "256 new tokens, the model's context has 256; set a smaller max_gen_toks"),
        ({"max_length": 1}, "question 0: max_length=1 leaves no room"),
    ],
)
def test_generation_arguments_that_cannot_be_are_refused(shared_lm: SengiLM, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        shared_lm.generate_until(written("a dog", **{"max_gen_toks": 8} | arguments))


def test_sampling_arguments_mean_nothing_to_a_greedy_answer(shared_lm: SengiLM) -> None:
    plain = shared_lm.generate_until(written("a dog", max_gen_toks=8))
    assert plain == shared_lm.generate_until(
        written("a dog", max_gen_toks=8, do_sample=False, temperature=0.7, top_k=50, top_p=0.5, num_beams=1)
    )


def test_drawn_answers_differ_between_repetitions_and_not_between_runs(folder: Path) -> None:
    asked = written(*["a dog"] * 4, max_gen_toks=16, do_sample=True, temperature=1.0)
    first, again, other = (
        SengiLM(folder, device="cpu", seed=seed, progress=quiet).generate_until(asked) for seed in (1, 1, 2)
    )
    assert len(set(first)) > 1
    assert first == again != other


def test_a_question_is_asked_once(lm: SengiLM) -> None:
    answers = lm.loglikelihood(scored(*[("The capital", " of France")] * 3, ("a", " dog")))
    assert answers[0] == answers[1] == answers[2]
    assert (lm.answering.computed, lm.answering.served) == (2, 0)


def test_progress_is_told(folder: Path) -> None:
    told: list[tuple[int, int, str]] = []
    told_lm = SengiLM(folder, device="cpu", batch_tokens=8, progress=lambda *now: told.append(now))
    told_lm.loglikelihood(scored(*[(f"{number} dogs", " and a cat barks") for number in range(6)]))
    assert told[-1] == (6, 6, "loglikelihood")
    assert [now[0] for now in told] == sorted({now[0] for now in told})  # more and more
    assert len(told) > 1


MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 12 + 30?"},
    {"role": "assistant", "content": "The answer is "},
]


def test_chat_template_is_the_tokenizers(shared_lm: SengiLM) -> None:
    render = shared_lm.tokenizer.apply_chat_template
    ours = shared_lm.apply_chat_template(MESSAGES[:2])
    assert ours == render(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    # a message that the model is to continue stays open
    ours = shared_lm.apply_chat_template(MESSAGES, add_generation_prompt=False)
    assert ours == render(MESSAGES, tokenize=False, continue_final_message=True)
    assert ours.endswith("The answer is ")
    assert shared_lm.chat_template(True) == shared_lm.tokenizer.chat_template


def test_a_template_without_system_messages_gets_none(folder: Path) -> None:
    lm = SengiLM(folder, device="cpu")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    lm.tokenizer.chat_template = refusing + lm.tokenizer.chat_template
    assert lm.apply_chat_template(MESSAGES[:2]) == lm.apply_chat_template(MESSAGES[1:2])


def test_without_a_template_there_is_no_chat(folder: Path) -> None:
    lm = SengiLM(folder, device="cpu")
    lm.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template; leave --apply_chat_template out"):
        lm.apply_chat_template(MESSAGES)


def test_context_length_is_the_configurations_unless_given(folder: Path, shared_lm: SengiLM) -> None:
    assert shared_lm.max_length == 256
    assert SengiLM(folder, device="cpu", max_length=100).max_length == 100


def test_cpu_weights_are_float32_unless_asked(tmp_path: Path) -> None:
    model = tiny_model(len(tiny_tokenizer())).to(torch.bfloat16)
    tokenizer = tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert SengiLM(tmp_path, device="cpu").model.dtype == torch.float32
    assert SengiLM(tmp_path, device="cpu", dtype="auto").model.dtype == torch.bfloat16


def test_a_loaded_model_keeps_its_place(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    lm = SengiLM(model, progress=quiet)  # its tokenizer is found in its folder
    assert lm.model is model
    assert lm.tok_encode("foo") == tiny_tokenizer().encode("foo")
    with pytest.raises(InputError, match=r"cache=.*no fingerprint.*give its folder"):
        SengiLM(model, cache=folder / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu7"}, "device=tpu7: no such device"),
        ({"dtype": "int3"}, "dtype=int3: not a type of weights; use one of auto, float32"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
    ],
)
def test_options_that_cannot_be_are_refused(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SengiLM(folder, **{"device": "cpu"} | options)


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sengi.harness")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"lm_eval, which is not installed; pip install 'sengi\[eval\]'"):
        import sengi.harness.lm  # noqa: F401
