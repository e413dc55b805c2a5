from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.dense_attention import attend_dense, tensors

from sengi.model import long_documents
from sengi.model.live_bytes import LiveBytes
from sengi.model.long_documents import attend_long


# Rule: blocks of queries give what the square gives, values and gradients.
@settings(max_examples=100)
@given(
    st.integers(1, 40),
    st.integers(1, 16),
    st.sampled_from([None, 1, 5, 30]),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
)
def test_equals_the_square(length: int, block: int, window: int | None, heads: tuple[int, int]) -> None:
    q, k, v = tensors(length, *heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_documents, "BLOCK", block)
        ours = attend_long(q, k, v, 0.3, window)
        theirs = attend_dense(q, k, v, 0.3, window)
        torch.testing.assert_close(ours, theirs)
        along = torch.randn_like(theirs)
        gradients = [torch.autograd.grad((x * along).sum(), (q, k, v)) for x in (ours, theirs)]
        # the gradients of keys and values are summed in float32
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_half_precision_stays_close_to_float32() -> None:
    q, k, v = tensors(700, 6, 2, size=16)
    half = attend_long(*(x.detach().bfloat16() for x in (q, k, v)), 0.25, None)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), attend_dense(q, k, v, 0.25, None), rtol=0.02, atol=0.02)


# Rule: what is kept for the backward pass grows with the length, not with its square.
def test_nothing_squared_is_kept() -> None:
    kept = []
    for length in (600, 1200):
        q, k, v = (x.detach().bfloat16().requires_grad_() for x in tensors(length, 2, 1))
        with LiveBytes([q, k, v]) as live:
            result = attend_long(q, k, v, 0.3, None)
            kept.append(live.now)
        assert result.requires_grad
    assert kept[1] == 2 * kept[0]
