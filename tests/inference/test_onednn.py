from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.model.families import family
from torch import Tensor, nn
from torch.nn.functional import linear

from sengi.inference.loglikelihood import CPU_TOKENS, Scorer
from sengi.inference.onednn import HEAD_ROWS, PACK_MULTIPLE, through_onednn

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
Calls = list[tuple[int, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Shapes of what oneDNN was given."""
    real = torch.ops.mkldnn._linear_pointwise
    seen: Calls = []

    def spy(values: Tensor, *rest: object) -> Tensor:
        seen.append(tuple(values.shape))
        return real(values, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    return seen


@needs_onednn
@given(
    st.sampled_from([0, 1, HEAD_ROWS, 100, PACK_MULTIPLE, 2 * PACK_MULTIPLE]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
)
def test_equals_torch_within_rounding(rows: int, width: int, out: int, bias: bool, deep: bool) -> None:
    torch.manual_seed(rows)
    layer = nn.Linear(width, out, bias=bias)
    values = torch.randn(width, rows).T  # not contiguous
    if deep:
        values = values.unsqueeze(0)
    with torch.no_grad(), through_onednn(layer):
        found = layer(values)
    torch.testing.assert_close(found, linear(values, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


# Every shape costs memory for good, so that only those are taken that come again.
@needs_onednn
@pytest.mark.parametrize(
    ("rows", "taken"),
    [
        (1, True),
        (HEAD_ROWS, True),
        (HEAD_ROWS + 1, False),
        (PACK_MULTIPLE, True),
        (2 * PACK_MULTIPLE, True),
        (200, False),
    ],
)
def test_shapes_that_come_again(calls: Calls, rows: int, taken: bool) -> None:
    layer = nn.Linear(8, 4)
    with torch.no_grad(), through_onednn(layer):
        layer(torch.randn(rows, 8))
    assert bool(calls) == taken


@needs_onednn
def test_what_it_does_not_know_is_left_alone(calls: Calls) -> None:
    class Other(nn.Linear):
        pass

    half = nn.Linear(8, 4, dtype=torch.bfloat16)
    turned = nn.Linear(8, 8)
    turned.weight = nn.Parameter(torch.randn(8, 8).T)
    layers = [Other(8, 4), half, turned]
    with torch.no_grad(), through_onednn(nn.ModuleList(layers)):
        for layer in layers:
            layer(torch.randn(HEAD_ROWS, 8, dtype=layer.weight.dtype))
    assert not calls
    with through_onednn(layer := nn.Linear(8, 4)), pytest.raises(RuntimeError, match="same dtype"):
        layer(torch.randn(HEAD_ROWS, 8, dtype=torch.float64))


def test_layers_are_given_back() -> None:
    layer = nn.Linear(8, 4)
    before = dict(vars(layer))
    with pytest.raises(KeyError), through_onednn(layer):
        raise KeyError
    assert vars(layer) == before
    layer(torch.randn(2, 8)).sum().backward()
    assert layer.weight.grad is not None


# What is scored goes through it: all full packs, and the rows whose logits are read.
@needs_onednn
def test_scoring_takes_it(calls: Calls) -> None:
    model = family("llama")
    texts = [([5 + i, *[7] * 20], [9, 11, 13, 15]) for i in range(20)]
    found = Scorer(model).score(texts)
    assert {CPU_TOKENS[0], HEAD_ROWS} <= {shape[-2] for shape in calls} <= {CPU_TOKENS[0], *range(1, HEAD_ROWS + 1)}
    for (context, continuation), score in zip(texts, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1]
        expected = logits.log_softmax(-1)[range(4), continuation].sum()
        assert score.sum == pytest.approx(float(expected), abs=1e-4)
