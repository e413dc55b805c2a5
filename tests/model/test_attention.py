from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import varlen

from sengi.model import attention
from sengi.model.attention import document_attention

MODULE = nn.Identity()


def qkv(tokens: int, heads: int = 4, shared: int = 2, size: int = 8, seed: int = 0, **kind: Any) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    return tuple(torch.randn(1, count, tokens, size, **kind) for count in (heads, shared, shared))


def bounds_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def dense(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float | None, window: int | None, cap: float | None
) -> Tensor:
    """The rule written out as one mask over the whole row; float64; (1, T, H, D)."""
    q, k, v = q.double(), k.double(), v.double()
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    position = torch.arange(q.shape[2], device=q.device)
    document = torch.bucketize(position, bounds[1:].to(q.device), right=True)
    distance = position[:, None] - position[None, :]
    seen = (document[:, None] == document[None, :]) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    logits = q @ k.transpose(2, 3) * (scale if scale is not None else 1 / math.sqrt(q.shape[3]))
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return (logits.masked_fill(~seen, -math.inf).softmax(-1) @ v).transpose(1, 2)


@settings(max_examples=150)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.sampled_from([None, 1, 3, 8, 100]),
    st.sampled_from([None, 0.7]),
    st.sampled_from([None, 0.2]),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
)
def test_equals_a_dense_mask(
    lengths: list[int], window: int | None, cap: float | None, scale: float | None, heads: tuple[int, int]
) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(sum(lengths), *heads))
    bounds = bounds_of(lengths)
    ours, weights = document_attention(
        MODULE,
        q,
        k,
        v,
        None,
        scaling=scale,
        cu_seq_lens_q=bounds,
        max_length_q=max(lengths),
        sliding_window=window,
        softcap=cap,
    )
    theirs = dense(q, k, v, bounds, scale, window, cap).float()
    assert weights is None
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    along = torch.randn_like(theirs)
    for one, two in zip(
        torch.autograd.grad((ours * along).sum(), (q, k, v)),
        torch.autograd.grad((theirs * along).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


# Rule: under autocast on a CPU short documents go side by side and long ones in blocks; where both are in a pack, with
# shared tokens or without, each gives what it gives in float32, up to rounding.
@pytest.mark.parametrize("longest", [1, 12, 100])  # all long, both, all short
@pytest.mark.parametrize(("shared", "rest"), [(0, [9, 30, 4]), (6, [5, 20, 1])])
@pytest.mark.parametrize("window", [None, 8])
def test_half_precision_on_a_cpu_keeps_documents_apart(
    longest: int, shared: int, rest: list[int], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [shared, *rest] if shared else rest
    q, k, v = (x.requires_grad_() for x in qkv(sum(lengths), 4, 2))
    options = {"cu_seq_lens_q": bounds_of(lengths), "max_length_q": shared + max(rest), "shared_tokens": shared}
    exact, _ = document_attention(MODULE, q, k, v, None, sliding_window=window, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(attention, "LONGEST", longest)
    calls, real = [], attention.attend_short
    monkeypatch.setattr(attention, "attend_short", lambda *a: calls.append(a) or real(*a))
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = document_attention(MODULE, q, k, v, None, sliding_window=window, **options)  # type: ignore[arg-type]
    assert half.dtype == torch.bfloat16
    # however many are short, they go at once
    assert len(calls) <= 1
    torch.testing.assert_close(half.float(), exact, rtol=0.03, atol=0.03)
    along = torch.randn_like(exact)
    for one, two in zip(
        torch.autograd.grad((half * along).sum(), (q, k, v)),
        torch.autograd.grad((exact * along).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=0.05, atol=0.06)


@settings(max_examples=60)
@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.sampled_from([None, 1, 3, 8]),
    st.sampled_from([None, 0.7]),
    st.sampled_from([(4, 4), (4, 2)]),
)
def test_shared_tokens_equal_documents_laid_out_whole(
    shared: int, rest: list[int], window: int | None, cap: float | None, heads: tuple[int, int]
) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(shared + sum(rest), *heads))
    # the same tokens once more for every document, the shared ones in front
    starts = [shared + sum(rest[:n]) for n in range(len(rest))]
    keys = [torch.arange(shared)]
    keys += [torch.cat([keys[0], torch.arange(a, a + n)]) for a, n in zip(starts, rest, strict=True)]
    whole = bounds_of([shared, *(shared + n for n in rest)])
    spread = torch.cat(keys)
    ours, _ = document_attention(
        MODULE,
        q,
        k,
        v,
        None,
        cu_seq_lens_q=bounds_of([shared, *rest]),
        cu_seq_lens_k=whole,
        max_length_q=shared + max(rest),
        shared_tokens=shared,
        shared_keys=spread,
        sliding_window=window,
        softcap=cap,
    )
    kept = torch.cat([torch.arange(a, b) for a, b in zip(whole.tolist(), whole.tolist()[1:], strict=False)][:1])
    own = [torch.arange(int(b) - n, int(b)) for b, n in zip(whole[2:], rest, strict=True)]
    laid_out = dense(*(x.index_select(2, spread) for x in (q, k, v)), whole, None, window, cap)
    theirs = laid_out.index_select(1, torch.cat([kept, *own])).float()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    along = torch.randn_like(theirs)
    for one, two in zip(
        torch.autograd.grad((ours * along).sum(), (q, k, v)),
        torch.autograd.grad((theirs * along).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def call(**changes: Any) -> None:
    q, k, v = qkv(5)
    values: dict[str, Any] = {
        "query": q,
        "attention_mask": None,
        "cu_seq_lens_q": bounds_of([2, 3]),
        "max_length_q": 3,
        **changes,
    }
    query, mask = values.pop("query"), values.pop("attention_mask")
    document_attention(MODULE, query, k, v, mask, **values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_mask": torch.ones(1, 5)}, "got an attention_mask; pass cu_seq_lens_q and no mask"),
        ({"cu_seq_lens_q": None}, "needs cu_seq_lens_q and max_length_q"),
        ({"max_length_q": None}, "needs cu_seq_lens_q and max_length_q"),
        ({"query": torch.zeros(2, 4, 5, 8)}, "takes one row of documents, got a batch of 2"),
        ({"dropout": 0.1}, r"attention dropout 0\.1 would make the result depend on the packing"),
        ({"s_aux": torch.zeros(4)}, r"attention sinks \(s_aux\) are not supported"),
    ],
)
def test_refuses_by_name(changes: dict[str, Any], words: str) -> None:
    call()
    with pytest.raises(ValueError, match=words):
        call(**changes)


# The signature of varlen_attn grew from one torch to the next; each fake checks what that version could take.
# Tensors are (T, heads, D).


def _answer(q, k, v, bounds, scale, window, **record: Any) -> Tensor:
    assert q.is_contiguous()
    assert k.is_contiguous()
    assert bounds.dtype == torch.int32
    seen.append(record)
    rows = [x.transpose(0, 1)[None] for x in (q, k, v)]
    return dense(*rows, bounds, scale, window, None)[0].float()


seen: list[dict[str, Any]] = []


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert key.shape[1] == query.shape[1]
    assert is_causal
    return _answer(query, key, value, cu_seq_q, None, None, longest=(max_q, max_k))


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert key.shape[1] == query.shape[1]
    return _answer(query, key, value, cu_seq_q, scale, _window(window_size), longest=(max_q, max_k))


def torch_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    assert enable_gqa == (key.shape[1] != query.shape[1])
    return _answer(query, key, value, cu_seq_q, scale, _window(window_size), longest=(max_q, max_k))


def _window(size: tuple[int, int]) -> int | None:
    left, right = size
    assert right == 0, "not causal"
    return None if left == -1 else left + 1


@pytest.mark.parametrize("scale", [8**-0.5, 0.2])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("version", [torch_2_10, torch_2_11, torch_2_13])
def test_the_kernel_is_asked_for_the_same_in_every_version(
    version: Callable[..., Tensor],
    heads: tuple[int, int],
    window: int | None,
    scale: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", version)
    q, k, v = qkv(11, *heads)
    bounds = bounds_of([6, 5])
    if version is torch_2_10 and window is not None:
        with pytest.raises(ValueError, match=f"sliding-window attention of {window} tokens needs torch 2.11"):
            attention._varlen(q, k, v, (bounds, bounds), 6, scale, window)
        return
    wide = bounds.to(torch.int64)
    ours = attention._varlen(q, k, v, (wide, wide), 6, scale, window)
    torch.testing.assert_close(ours, dense(q, k, v, bounds, scale, window, None).float(), rtol=1e-5, atol=1e-5)
    assert seen[-1] == {"longest": (6, 6)}


def test_the_installed_torch_has_a_signature_that_is_known() -> None:
    known = inspect.signature(varlen.varlen_attn).parameters
    first = [name for name, p in known.items() if p.kind is p.POSITIONAL_OR_KEYWORD][:7]
    assert first == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert "window_size" in known
    assert known["window_size"].default == (-1, -1)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_the_real_kernel(dtype: torch.dtype, window: int | None, heads: tuple[int, int], scale: float | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    lengths = [1, 37, 5, 200]
    q, k, v = (x.requires_grad_() for x in qkv(sum(lengths), *heads, size=64, device="cuda", dtype=dtype))
    bounds = bounds_of(lengths).cuda()
    ours, _ = document_attention(
        MODULE, q, k, v, None, scaling=scale, cu_seq_lens_q=bounds, max_length_q=200, sliding_window=window
    )
    theirs = dense(q, k, v, bounds, scale, window, None).to(dtype)
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    along = torch.randn_like(theirs)
    for one, two in zip(
        torch.autograd.grad((ours * along).sum(), (q, k, v)),
        torch.autograd.grad((theirs * along).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=4e-2, atol=4e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", [{"dtype": torch.float32}, {"dtype": torch.bfloat16, "softcap": 0.7}])
def test_a_gpu_without_the_kernel_gives_the_same(kind: dict[str, Any]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    cap = kind.get("softcap")
    q, k, v = qkv(20, device="cuda", dtype=kind["dtype"])
    bounds = bounds_of([9, 11]).cuda()
    ours, _ = document_attention(MODULE, q, k, v, None, cu_seq_lens_q=bounds, max_length_q=11, softcap=cap)
    tolerance = 1e-4 if kind["dtype"] == torch.float32 else 2e-2
    expected = dense(q, k, v, bounds, None, None, cap)
    torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.cuda
def test_shared_keys_in_the_real_kernel() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    q, k, v = qkv(20, 4, 2, size=64, device="cuda", dtype=torch.bfloat16)
    keys = torch.tensor([*range(5), *range(5), *range(5, 9), *range(5), *range(9, 20)]).cuda()
    whole = bounds_of([5, 9, 16]).cuda()
    bounds = {"cu_seq_lens_q": bounds_of([5, 4, 11]).cuda(), "cu_seq_lens_k": whole, "max_length_q": 16}
    ours, _ = document_attention(MODULE, q, k, v, None, **bounds, shared_tokens=5, shared_keys=keys)
    laid_out = dense(*(x.index_select(2, keys) for x in (q, k, v)), whole, None, None, None)
    own = torch.tensor([*range(5), *range(10, 14), *range(19, 30)]).cuda()
    torch.testing.assert_close(ours.double(), laid_out.index_select(1, own), rtol=2e-2, atol=2e-2)
