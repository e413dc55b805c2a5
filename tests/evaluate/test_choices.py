from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from sengi.errors import NonFiniteError
from sengi.evaluate.choices import ChoiceScores, score_choices
from sengi.evaluate.questions import Question
from sengi.inference.prompts import Prompts
from sengi.model.load import load_model, load_tokenizer

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

QUESTIONS = [
    Question("1", "What is the capital of France?", ("Paris", "Rome", "a dog that barks and barks"), ("Paris",)),
    Question("2", "12 + 30?", ("42", "7"), ("42",)),
    Question(
        "3", "Which animal barks, a dog, a cat or a fish? Think of all that you know.", ("你好", "a", "a dog"), ("a",)
    ),
    Question("4", "x", ("y", "z"), ("y",)),
]

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 256,
    "pad_token_id": 3,
}


@pytest.fixture(scope="module")
def loaded(chat_folder: Path) -> Loaded:
    torch.set_num_threads(1)
    return load_model(chat_folder), load_tokenizer(chat_folder)


def by_hand(loaded: Loaded, question: Question, choice: str) -> float:
    """The definition: one forward call over prompt and choice, no batch, no cache, no padding."""
    model, tokenizer = loaded
    prompt = Prompts(tokenizer).question(question.question)
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([tokenizer(prompt + choice, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        log_probs = model(ids).logits.double().log_softmax(-1)[0]
    return sum(float(log_probs[i - 1, ids[0, i]]) for i in range(len(start), ids.shape[1]))


def assert_close(scores: list[ChoiceScores], loaded: Loaded, questions: list[Question]) -> None:
    assert len(scores) == len(questions)
    for score, question in zip(scores, questions, strict=True):
        for choice, total, per_byte in zip(question.choices or (), score.sums, score.per_byte, strict=True):
            assert total == pytest.approx(by_hand(loaded, question, choice), abs=1e-4)
            assert per_byte == total / len(choice.encode())


@pytest.mark.parametrize("batch_tokens", [1, 60, 150, 4096])
def test_any_batch_equals_one_by_one(loaded: Loaded, batch_tokens: int) -> None:
    assert_close(score_choices(*loaded, QUESTIONS, batch_tokens=batch_tokens), loaded, QUESTIONS)


texts = st.text(alphabet="abc dogPris 12?你é", min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(texts, st.lists(texts, min_size=2, max_size=5, unique=True)), min_size=1, max_size=5),
    st.integers(20, 400),
)
def test_random_questions_equal_one_by_one(
    loaded: Loaded, rows: list[tuple[str, list[str]]], batch_tokens: int
) -> None:
    questions = [Question(str(i), q, tuple(choices), (choices[0],)) for i, (q, choices) in enumerate(rows)]
    assert_close(score_choices(*loaded, questions, batch_tokens=batch_tokens), loaded, questions)


# A tokenizer may join the end of the prompt with the start of a choice; no part of the choice may get lost then.
def test_a_token_across_the_border_is_scored(loaded: Loaded) -> None:
    model, tokenizer = loaded
    previous = tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} Pa{% endfor %}"
    try:
        question = Question("1", "The capital of France is", ("ris", "x"), ("ris",))
        whole = tokenizer("The capital of France is Paris", add_special_tokens=False)["input_ids"]
        prompt = tokenizer("The capital of France is Pa", add_special_tokens=False)["input_ids"]
        same = next(i for i, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b)
        assert len(whole) <= len(prompt), "this vocabulary has Paris as one token"
        with torch.no_grad():
            log_probs = model(torch.tensor([whole])).logits.double().log_softmax(-1)[0]
        expected = sum(float(log_probs[i - 1, whole[i]]) for i in range(same, len(whole)))
        assert score_choices(model, tokenizer, [question])[0].sums[0] == pytest.approx(expected, abs=1e-4)
    finally:
        tokenizer.chat_template = previous


# The likelihoods of all continuations of one token sum to one: nothing is counted twice or left out.
def test_scores_are_log_probabilities(loaded: Loaded) -> None:
    model, tokenizer = loaded
    singles = {tokenizer.decode([i]) for i in range(4, len(tokenizer))}
    singles = {s for s in singles if len(tokenizer(s, add_special_tokens=False)["input_ids"]) == 1 and s.strip()}
    question = Question("1", "Which?", tuple(sorted(singles)), ("x",))
    sums = score_choices(model, tokenizer, [question])[0].sums
    assert all(s < 0 for s in sums)
    assert 0 < sum(map(math.exp, sums)) < 1


def test_progress_counts_every_question(loaded: Loaded) -> None:
    counts: list[int] = []
    score_choices(*loaded, QUESTIONS, batch_tokens=60, progress=counts.append)
    assert sum(counts) == len(QUESTIONS)
    assert score_choices(*loaded, []) == []


# Windows shorter than the question: keys leave the cache while choices are scored.
@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SIZES, sliding_window=6),
        Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]),
        Qwen3Config(**SIZES, head_dim=8),
        GraniteConfig(**SIZES),
        Phi3Config(**SIZES),
    ],
    ids=lambda config: config.model_type,
)
def test_other_families_equal_one_by_one(loaded: Loaded, config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    config.vocab_size = len(loaded[1])
    other = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval(), loaded[1]
    assert_close(score_choices(*other, QUESTIONS), other, QUESTIONS)


# max() over NaN takes the first choice, which would be scored as an answer.
def test_a_broken_model_chooses_nothing(chat_folder: Path, loaded: Loaded) -> None:
    broken = load_model(chat_folder)
    broken.get_parameter("model.norm.weight").data[:] = float("nan")
    with pytest.raises(NonFiniteError, match="the model's log-likelihoods are NaN"):
        score_choices(broken, loaded[1], QUESTIONS)
