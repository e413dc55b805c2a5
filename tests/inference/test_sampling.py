from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers import TopPLogitsWarper

from sengi.inference.sampling import Sampler, next_tokens

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])


def drawn(sampler: Sampler, logits: Tensor, count: int) -> list[int]:
    return [sampler.draw(logits) for _ in range(count)]


# Draws follow softmax(logits / temperature): a chi-square test that a wrong temperature fails by far.
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    counts = torch.bincount(torch.tensor(drawn(Sampler(temperature, 1.0, 1, CPU), LOGITS, 4000)), minlength=5)
    expected = (LOGITS / temperature).softmax(-1).double() * 4000
    expected *= 4000 / expected.sum()
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01
    wrong = (LOGITS / (temperature * 1.3)).softmax(-1).double() * 4000
    assert chisquare(counts.numpy(), (wrong * 4000 / wrong.sum()).numpy()).pvalue < 1e-4


# top_p keeps the tokens that transformers keeps.
@settings(max_examples=30)
@given(st.lists(st.integers(-16, 16), min_size=2, max_size=12, unique=True), st.floats(0.05, 0.99))
def test_top_p_keeps_what_transformers_keeps(quarters: list[int], top_p: float) -> None:
    logits = torch.tensor(quarters) / 4
    kept = set(TopPLogitsWarper(top_p)(None, logits[None])[0].isfinite().nonzero().flatten().tolist())
    assert set(drawn(Sampler(1.0, top_p, 3, CPU), logits, 60)) <= kept
    if len(kept) == 1:
        assert kept == {int(logits.argmax())}


def test_top_p_draws_all_that_it_keeps() -> None:
    assert set(drawn(Sampler(1.0, 0.8, 0, CPU), LOGITS, 400)) == {1, 2, 4}


# Every row draws with its own seed, and rows without a temperature are not touched by it.
def test_rows_are_independent() -> None:
    def run(others: int) -> list[int]:
        samplers = [Sampler(1.0, 1.0, 5, CPU), *(Sampler(1.0, 1.0, seed, CPU) for seed in range(others))]
        return [next_tokens(LOGITS.expand(len(samplers), -1), samplers)[0] for _ in range(30)]

    assert run(0) == run(3)
    assert next_tokens(LOGITS.expand(2, -1), [Sampler(0.0, 1.0, 0, CPU)] * 2) == [1, 1]
