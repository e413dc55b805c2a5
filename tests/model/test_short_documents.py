from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.dense_attention import attend_dense, tensors
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sengi.model import document_groups, short_documents
from sengi.model.short_documents import LONGEST, attend_short


def whole_documents(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], shared: int, window: int | None) -> Tensor:
    """Every document laid out whole, one at a time; its own rows of the result."""
    results, start = [], 0
    for number, length in enumerate(lengths):
        rows = torch.arange(start, start + length)
        before = torch.arange(shared if number else 0)
        keys = torch.cat([before, rows])
        results.append(attend_dense(*(x[keys] for x in (q, k, v)), 0.3, window)[len(before) :])
        start += length
    return torch.cat(results)


# Rule: each token sees its own document up to itself and the shared beginning, whatever lies beside it and however
# lengths fall into groups; values and gradients.
@settings(max_examples=150)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.integers(0, 20),
    st.sampled_from([None, 1, 5, 30]),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
)
def test_equals_documents_alone(rest: list[int], shared: int, window: int | None, heads: tuple[int, int]) -> None:
    lengths = [shared, *rest] if shared else rest
    q, k, v = tensors(sum(lengths), *heads)
    ours = attend_short(q, k, v, lengths, shared, 0.3, window)
    theirs = whole_documents(q, k, v, lengths, shared, window)
    torch.testing.assert_close(ours, theirs)
    along = torch.randn_like(theirs)
    gradients = [torch.autograd.grad((x * along).sum(), (q, k, v)) for x in (ours, theirs)]
    # the gradient of shared keys is summed in float32
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_values_may_have_another_head_size() -> None:
    (q, k, _), (_, _, v) = tensors(30, 4, 2, size=8), tensors(30, 4, 2, size=5)
    ours = attend_short(q, k, v, [18, 12], 0, 0.3, None)
    torch.testing.assert_close(ours, whole_documents(q, k, v, [18, 12], 0, None))


# Rule: padding is dropped, so what lies there never reaches a document: not even a NaN of another one's token.
def test_documents_do_not_reach_each_other() -> None:
    q, k, v = tensors(30, 4, 2)
    before = attend_short(q, k, v, [13, 17], 0, 0.3, None)
    with torch.no_grad():
        k[13:] += 100
        v[13:] = float("nan")
    after = attend_short(q, k, v, [13, 17], 0, 0.3, None)
    assert torch.equal(after[:13], before[:13])
    assert after[13:].isnan().all()
    (grad,) = torch.autograd.grad(after[:13].sum(), q)
    assert torch.equal(grad[:13], torch.autograd.grad(before[:13].sum(), q)[0][:13])


def test_half_precision_stays_close_to_float32() -> None:
    q, k, v = tensors(200, 6, 2, size=16)
    exact = attend_short(q, k, v, [120, 50, 30], 0, 0.25, None)
    half = attend_short(*(x.detach().bfloat16() for x in (q, k, v)), [120, 50, 30], 0, 0.25, None)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, rtol=0.02, atol=0.02)


# What is kept between calls must hold numbers, also when the first call was made while memory was traced.
def test_a_traced_call_leaves_nothing_empty_behind() -> None:
    q, k, v = tensors(21, 4, 2)
    expected = attend_short(q, k, v, [10, 11], 0, 0.3, None)
    document_groups.lay_out.cache_clear()
    short_documents._upper_halves.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        attend_short(*(torch.empty_like(x) for x in (q, k, v)), [10, 11], 0, 0.3, None)
    assert torch.equal(attend_short(q, k, v, [10, 11], 0, 0.3, None), expected)


@pytest.mark.parametrize("lengths", [[LONGEST], [LONGEST, 1], [1]])
def test_lengths_at_the_ends(lengths: list[int]) -> None:
    q, k, v = tensors(sum(lengths), 2, 1, size=4)
    torch.testing.assert_close(attend_short(q, k, v, lengths, 0, 0.3, None), whole_documents(q, k, v, lengths, 0, None))
