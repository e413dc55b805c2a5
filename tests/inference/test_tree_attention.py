from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.families import FAMILIES, small_model
from torch import Tensor, nn
from torch.nn.attention import varlen

from sengi.inference import tree_attention as ours
from sengi.inference.lent_model import lent
from sengi.inference.prefix_tree import PrefixTree
from sengi.inference.tree_attention import NAME, TreeWalk, tree_attention
from sengi.model.attention import takes_flash

SIZE = 8
CPU = torch.device("cpu")


class Layer(nn.Module):
    layer_idx = 0


def keys_of(tokens: int, heads: int, shared: int, **kind: Any) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens)
    return tuple(torch.randn(1, count, tokens, SIZE, **kind) for count in (heads, shared, shared))  # type: ignore


def by_path(tree: PrefixTree, qkv: tuple[Tensor, ...], scale: float | None, window: int | None, cap: float | None):
    """The rule, one text at a time in float64: every token sees its own path, dense mask; (1, tokens, H, D)."""
    q, k, v = (x[0].double() for x in qkv)
    k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for x in (k, v))
    result = torch.full((q.shape[1], q.shape[0], q.shape[2]), math.nan, dtype=torch.float64, device=q.device)
    for text, ids in enumerate(tree.texts):
        rows = [row for part in reversed(tree.rows(text, 0, len(ids))) for row in part]
        at = torch.arange(len(rows), device=q.device)
        distance = at[:, None] - at[None, :]
        logits = q[:, rows] @ k[:, rows].transpose(1, 2) * (scale if scale is not None else SIZE**-0.5)
        logits = cap * torch.tanh(logits / cap) if cap else logits
        unseen = (distance < 0) | (distance >= (window or len(rows)))
        result[rows] = (logits.masked_fill(unseen, -math.inf).softmax(-1) @ v[:, rows]).transpose(0, 1)
    return result.unsqueeze(0)


def by_packs(tree: PrefixTree, qkv: tuple[Tensor, ...], batch: int, call: Callable[..., Tensor], walk: TreeWalk):
    parts = []
    for pack in tree.packs(batch, 10**6):
        walk.enter(pack)
        parts.append(call(*(x[:, :, pack.begin : pack.end] for x in qkv)))
    return torch.cat(parts, dim=1)


sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=8)
windows = st.sampled_from([None, 1, 2, 5, 100])
heads = st.sampled_from([(4, 4), (4, 2), (3, 1)])


@given(
    sequences,
    st.integers(1, 30),
    windows,
    st.sampled_from([None, 0.7]),
    st.sampled_from([None, 0.2]),
    heads,
    st.sampled_from([1, 3, 128]),
)
def test_every_token_sees_its_path(
    texts: list[list[int]],
    batch: int,
    window: int | None,
    cap: float | None,
    scale: float | None,
    heads: tuple[int, int],
    block: int,
) -> None:
    tree = PrefixTree(texts, 0)
    qkv = keys_of(tree.tokens, *heads)
    walk = TreeWalk(tree.longest, CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "QUERY_BLOCK", block)  # queries in blocks give the same
        result = by_packs(tree, qkv, batch, lambda *x: walk.attend(0, *x, scale, window, cap), walk)
    torch.testing.assert_close(result.double(), by_path(tree, qkv, scale, window, cap), rtol=1e-5, atol=1e-5)


# Stand-ins for the CUDA kernel as torch 2.11 and 2.13 have it, in the words of its documentation: sequence i has
# queries [cu_seq_q[i], cu_seq_q[i + 1]) and keys [cu_seq_k[i], cu_seq_k[i + 1]); the causal mask ends at the last key.


def _kernel(q, k, v, bounds_q, bounds_k, longest, scale, window_size) -> Tensor:
    left, right = window_size
    assert right == 0, "not causal"
    assert all(x.is_contiguous() for x in (q, k, v))
    assert bounds_q.dtype == bounds_k.dtype == torch.int32
    lengths = [bounds.diff() for bounds in (bounds_q, bounds_k)]
    assert longest == tuple(int(length.max()) for length in lengths)
    assert (int(bounds_q[-1]), int(bounds_k[-1])) == (len(q), len(k))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    parts = []
    for i in range(len(bounds_q) - 1):
        a, b = slice(*bounds_q[i : i + 2].tolist()), slice(*bounds_k[i : i + 2].tolist())
        rows, columns = int(lengths[0][i]), int(lengths[1][i])
        distance = torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)[None, :]
        unseen = (distance < 0) | (distance > left if left >= 0 else distance < 0)
        logits = torch.einsum("qhd,khd->hqk", q[a], k[b]) * (scale if scale is not None else SIZE**-0.5)
        parts.append(torch.einsum("hqk,khd->qhd", logits.masked_fill(unseen, -math.inf).softmax(-1), v[b]))
    return torch.cat(parts)


def torch_2_11(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    assert k.shape[1] == q.shape[1]
    return _kernel(q, k, v, cu_q, cu_k, (max_q, max_k), scale, window_size)


def torch_2_13(
    q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert enable_gqa == (k.shape[1] != q.shape[1])
    return _kernel(q, k, v, cu_q, cu_k, (max_q, max_k), scale, window_size)


@pytest.mark.parametrize("version", [torch_2_11, torch_2_13])
@settings(max_examples=30)
@given(texts=sequences, batch=st.integers(1, 30), window=windows, scale=st.sampled_from([None, 0.2]), heads=heads)
def test_the_kernel_is_given_every_path(
    version: Callable[..., Tensor],
    texts: list[list[int]],
    batch: int,
    window: int | None,
    scale: float | None,
    heads: tuple[int, int],
) -> None:
    tree = PrefixTree(texts, 0)
    qkv = keys_of(tree.tokens, *heads)
    walk = TreeWalk(tree.longest, CPU)
    empty = tuple(x.new_empty(1, x.shape[1], tree.longest, SIZE) for x in qkv[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", version)
        ours._varlen_groups_heads.cache_clear()
        walk._paths[0] = empty
        result = by_packs(tree, qkv, batch, lambda *x: walk._varlen(0, *x, scale, window), walk)
    ours._varlen_groups_heads.cache_clear()
    torch.testing.assert_close(result.double(), by_path(tree, qkv, scale, window, None), rtol=1e-5, atol=1e-5)


class OnGpu(Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def gpu(monkeypatch: pytest.MonkeyPatch, major: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))


@pytest.mark.parametrize(
    ("size", "of_values", "dtype", "cap", "major", "taken"),
    [
        (64, 64, torch.bfloat16, None, 8, True),
        (256, 256, torch.float16, None, 9, True),
        (192, 128, torch.bfloat16, None, 9, False),  # DeepSeek's heads
        (264, 264, torch.bfloat16, None, 9, False),
        (60, 60, torch.bfloat16, None, 9, False),
        (64, 64, torch.bfloat16, None, 7, False),  # Volta, Turing
        (64, 64, torch.float32, None, 9, False),
        (64, 64, torch.bfloat16, 0.7, 9, False),
    ],
)
def test_the_kernel_is_asked_only_for_what_it_takes(
    size: int,
    of_values: int,
    dtype: torch.dtype,
    cap: float | None,
    major: int,
    taken: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu(monkeypatch, major)
    query, value = (torch.empty(1, 1, 1, n, dtype=dtype, device="meta") for n in (size, of_values))
    assert not takes_flash(query, value, cap)  # not on a GPU
    assert takes_flash(query.as_subclass(OnGpu), value.as_subclass(OnGpu), cap) is taken


@pytest.mark.parametrize("major", [7, 8])
def test_a_gpu_without_the_kernel_takes_the_other_path(major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, major)
    asked: list[int] = []
    monkeypatch.setattr(TreeWalk, "_varlen", lambda self, layer, query, *rest: asked.append(layer) or query[0:1, 0])
    tree = PrefixTree([[0, 1, 2, 0], [0, 1, 1, 1, 2]])
    qkv = keys_of(tree.tokens, 4, 2, dtype=torch.bfloat16)
    walk = TreeWalk(tree.longest, CPU)
    attend = partial(walk.attend, 0, scale=None, window=None, cap=None)
    result = by_packs(tree, qkv, 3, lambda *x: attend(*(y.as_subclass(OnGpu) for y in x)).as_subclass(Tensor), walk)
    assert bool(asked) == (major == 8)
    if not asked:
        torch.testing.assert_close(result.double(), by_path(tree, qkv, None, None, None), rtol=2e-2, atol=2e-2)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_on_a_gpu(dtype: torch.dtype, window: int | None, heads: tuple[int, int]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    rng = np.random.default_rng(0)
    head = rng.integers(0, 9, 60).tolist()
    tree = PrefixTree([head + rng.integers(0, 9, n).tolist() for n in (1, 5, 40, 150, 31)])
    qkv = keys_of(tree.tokens, *heads, device="cuda", dtype=dtype)
    walk = TreeWalk(tree.longest, torch.device("cuda"))
    result = by_packs(tree, qkv, 100, lambda *x: walk.attend(0, *x, None, window, None), walk)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(result.double(), by_path(tree, qkv, None, window, None), rtol=tolerance, atol=tolerance)


# Keys and values are kept for one path a layer, however many texts there are.
def test_kept_memory_is_one_path() -> None:
    rng = np.random.default_rng(0)
    head = rng.integers(0, 9, 20).tolist()
    for count in (3, 60):
        tree = PrefixTree([head + rng.integers(0, 9, 10).tolist() for _ in range(count)])
        walk = TreeWalk(tree.longest, CPU)
        for layer in range(2):
            qkv = keys_of(tree.tokens, 4, 2)
            attend = partial(walk.attend, layer, scale=None, window=None, cap=None)
            by_packs(tree, qkv, 25, attend, walk)
        assert walk.kept_bytes == 2 * 2 * 2 * 30 * SIZE * 4  # layers, keys and values, heads, tokens, size, bytes


def call(**changes: Any) -> None:
    tree = PrefixTree([[1, 2, 3]])
    query, key, value = keys_of(3, 4, 2)
    walk = TreeWalk(3, CPU)
    walk.enter(next(tree.packs(8, 8)))
    values: dict[str, Any] = {"query": query, "attention_mask": None, "tree_walk": walk, "module": Layer(), **changes}
    query, mask, module = values.pop("query"), values.pop("attention_mask"), values.pop("module")
    tree_attention(module, query, key, value, mask, **values)


class Kind(Layer):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config = type("Config", (), {"layer_types": [kind]})()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_mask": torch.ones(1, 3)}, "got an attention_mask; it takes none"),
        ({"tree_walk": None}, "needs tree_walk"),
        ({"query": torch.zeros(2, 4, 3, SIZE)}, "takes one row of nodes, got a batch of 2"),
        ({"dropout": 0.1}, r"attention dropout 0\.1 makes results random; put the model in evaluation mode"),
        ({"s_aux": torch.zeros(4)}, "s_aux is not supported"),
        ({"module": nn.Identity()}, "Identity has no layer_idx"),
        ({"module": Kind("chunked_attention")}, r"layer 0 \(chunked_attention\) does not tell"),
        ({"module": Kind("sliding_attention")}, r"layer 0 \(sliding_attention\) does not tell"),
    ],
)
def test_refuses_by_name(changes: dict[str, Any], words: str) -> None:
    call()
    call(module=Kind("sliding_attention"), sliding_window=2)
    with pytest.raises(ValueError, match=words):
        call(**changes)


# The same model generates and trains afterwards: its own attention is back, after an error, too.
def test_the_model_gets_its_attention_back() -> None:
    for name in ("llama", "gemma2"):
        config, values = FAMILIES[name]
        model = small_model(config, values)
        before = model.config._attn_implementation
        assert before != ours.NAME
        with lent(model, NAME):
            assert model.config._attn_implementation == ours.NAME
        assert model.config._attn_implementation == before
        with pytest.raises(KeyError), lent(model, NAME):
            raise KeyError
        assert model.config._attn_implementation == before
