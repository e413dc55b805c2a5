from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.families import family
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from sengi.conversation import Sample
from sengi.data.packs import Pack, make_pack
from sengi.model import attention, flex_documents
from sengi.model.flex_documents import BLOCK, attend_flex, block_mask, can_flex
from sengi.model.supervised import SupervisedModel, prepare

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's own reference of FlexAttention, which it does not offer for gradients on a CPU."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_documents, "_compiled", lambda: torch_flex.flex_attention)
    flex_documents._last.clear()
    yield
    torch.compiler.reset()


def bounds_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def rule(lengths: list[int], shared: int, window: int | None) -> Tensor:
    """Which token (row) sees which (column), written out document by document."""
    seen = torch.zeros(sum(lengths), sum(lengths), dtype=torch.bool)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds_of(lengths).tolist())):
        before = list(range(shared if number else 0))
        for token in range(start, stop):
            all_before = before + list(range(start, token + 1))
            seen[token, all_before if window is None else all_before[-window:]] = True
    return seen


LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=6)
WINDOWS = st.sampled_from([None, 1, 50, 128, 200])


# Rule: a token sees what the rule says, and no more; blocks of which something is seen are visited, and only blocks of
# which all is seen go without the mask.
@settings(max_examples=60)
@given(LENGTHS, st.integers(0, 280), WINDOWS)
def test_the_mask_and_its_blocks(rest: list[int], shared: int, window: int | None) -> None:
    lengths = [shared, *rest] if shared else rest
    tokens = sum(lengths)
    size = -(-tokens // BLOCK) * BLOCK
    mask = block_mask(bounds_of(lengths), size, shared, window)
    place = torch.arange(size)
    zero = torch.tensor(0)
    found = mask.mask_mod(zero, zero, place[:, None], place[None, :])
    assert torch.equal(found[:tokens, :tokens], rule(lengths, shared, window))
    # what lies behind the documents is seen by none of them
    assert not found[:tokens, tokens:].any()
    count = size // BLOCK
    in_blocks = found.view(count, BLOCK, count, BLOCK).permute(0, 2, 1, 3).flatten(2)
    visited, whole = (
        dense(number, which) for number, which in ((mask.kv_num_blocks, mask.kv_indices), full_blocks(mask))
    )
    assert not (visited & whole).any()
    assert ((visited | whole) >= in_blocks.any(dim=2)).all()
    assert (whole <= in_blocks.all(dim=2)).all()
    if window is None:  # nothing is visited in vain, and no mask computed where all is seen
        real = torch.arange(count) < tokens // BLOCK
        assert torch.equal((visited | whole)[real], in_blocks.any(dim=2)[real])
        inner = real & (torch.arange(count) > 0)
        off_diagonal = ~torch.eye(count, dtype=torch.bool)
        assert torch.equal((whole & off_diagonal)[inner], (in_blocks.all(dim=2) & off_diagonal)[inner])


def full_blocks(mask: torch_flex.BlockMask) -> tuple[Tensor, Tensor]:
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    return mask.full_kv_num_blocks, mask.full_kv_indices


def dense(number: Tensor, which: Tensor) -> Tensor:
    result = torch.zeros(which.shape[2:], dtype=torch.bool)
    for row, (some, order) in enumerate(zip(number[0, 0].tolist(), which[0, 0].tolist(), strict=True)):
        result[row, order[:some]] = True
    return result


# Rule: values and gradients are those of the rule written out.
@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize(("lengths", "shared"), [([130, 20, 256, 9], 0), ([140, 7, 300], 140), ([5], 0)])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (50, None), (None, 2.0), (150, 2.0)])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3)])
def test_equals_the_rule_written_out(
    lengths: list[int], shared: int, window: int | None, cap: float | None, heads: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, sum(lengths), 16, requires_grad=True) for n in (heads[0], heads[1], heads[1]))
    ours = attend_flex(q, k, v, bounds_of(lengths), shared, 0.3, window, cap)
    keys, values = (x.double().repeat_interleave(heads[0] // heads[1], dim=1) for x in (k, v))
    logits = q.double() @ keys.transpose(2, 3) * 0.3
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    shares = logits.masked_fill(~rule(lengths, shared, window), float("-inf")).softmax(dim=-1)
    theirs = (shares @ values).transpose(1, 2).float()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    along = torch.randn_like(theirs)
    gradients = [torch.autograd.grad((x * along).sum(), (q, k, v)) for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


# Rule: one compilation for packs of all lengths, with shared tokens and without: a new mask is no new code. What a GPU
# would run is not compiled here; what is guarded is told before that.
@pytest.mark.parametrize(("window", "cap"), [(None, None), (100, 2.0)])
def test_compiled_once(window: int | None, cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    compiled = torch.compile(torch_flex.flex_attention, dynamic=True, backend="aot_eager")
    monkeypatch.setattr(flex_documents, "_compiled", lambda: compiled)

    def attend(lengths: list[int], shared: int) -> None:
        q, k, v = (torch.randn(1, n, sum(lengths), 16) for n in (4, 2, 2))
        assert attend_flex(q, k, v, bounds_of(lengths), shared, 0.3, window, cap).isfinite().all()

    with torch.no_grad():
        attend([300, 40], 0)
        attend([100, 500], 100)
        with torch.compiler.set_stance("fail_on_recompile"):
            for lengths, shared in (([10], 0), ([128, 128], 0), ([700, 3, 90], 0), ([257, 400, 2], 257)):
                attend(lengths, shared)
    torch.compiler.reset()


def packs() -> list[Pack]:
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 200, (n,), generator=draw).int().numpy() for n in (60, 45, 30)]
    for row in rows:
        row[:12] = 7
    samples = [Sample(row, (row % 3 == 0).astype("uint8")) for row in rows]
    return [make_pack(samples, lean=flag) for flag in (False, True)]


# Rule: a family that FlashAttention's kernel does not take (soft caps, windows) trains the same through this one.
@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize("name", ["gemma2", "llama", "gemma3"])
def test_a_model_trains_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(model: SupervisedModel, pack: Pack) -> list[Tensor]:
        model.zero_grad()
        model(pack, torch.ones(len(pack.targets)))[0].backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    model = prepare(copy.deepcopy(family(name)))
    for pack in packs():
        expected = gradients(model, pack)
        with monkeypatch.context() as patch:
            patch.setattr(attention, "can_flex", lambda *_: True)
            found = gradients(model, pack)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


# Rule: the mask of a pack is made once for all layers of a kind, and again for the next pack.
@pytest.mark.usefixtures("on_a_cpu")
def test_one_mask_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = [], flex_documents.block_mask
    monkeypatch.setattr(flex_documents, "block_mask", lambda *a: made.append(a[3]) or real(*a))
    q = torch.randn(1, 2, 300, 16)
    for bounds in (bounds_of([200, 100]), bounds_of([200, 100])):
        for window in (None, 50, None, 50):
            attend_flex(q, q, q, bounds, 0, 0.3, window, None)
    assert made == [None, 50, None, 50]


def test_a_cpu_does_not_take_it() -> None:
    q = torch.randn(1, 2, 300, 16)
    assert not can_flex(q, q)


def test_a_kernel_that_fails_is_told_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("no Triton\nand much more")

    monkeypatch.setattr(flex_documents, "_compiled", lambda: broken)
    flex_documents._works.cache_clear()
    with pytest.warns(UserWarning, match=r"does not work here \(no Triton\): documents .* one at a time"):
        assert not flex_documents._works(torch.device("cpu"), torch.float32, 16, 16)
    flex_documents._works.cache_clear()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (50, None), (None, 2.0)])
def test_the_real_flex_kernel(dtype: torch.dtype, window: int | None, cap: float | None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    lengths, shared = [140, 7, 300], 140
    q, k, v = (torch.randn(1, n, sum(lengths), 64, device="cuda", dtype=dtype, requires_grad=True) for n in (4, 2, 2))
    assert can_flex(q, v)
    ours = attend_flex(q, k, v, bounds_of(lengths).cuda(), shared, 0.1, window, cap)
    keys, values = (x.double().repeat_interleave(2, dim=1) for x in (k, v))
    logits = q.double() @ keys.transpose(2, 3) * 0.1
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    shares = logits.masked_fill(~rule(lengths, shared, window).cuda(), float("-inf")).softmax(dim=-1)
    theirs = (shares @ values).transpose(1, 2).to(dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    along = torch.randn_like(theirs)
    for one, two in zip(
        torch.autograd.grad((ours * along).sum(), (q, k, v)),
        torch.autograd.grad((theirs * along).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=2 * tolerance, atol=2 * tolerance)
