from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig

from sengi.model import head as module
from sengi.model.head import CHUNK, LogitRule, supervised_loss

RULES = [LogitRule(), LogitRule(scale=0.25), LogitRule(cap=3.0), LogitRule(scale=2.0, cap=1.5)]


def inputs(
    targets: int, hidden: int = 12, vocab: int = 50, bias: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    torch.manual_seed(targets)
    head = nn.Linear(hidden, vocab, bias=bias, dtype=dtype)
    states = torch.randn(targets, hidden, dtype=dtype, requires_grad=True)
    return states, head, torch.randint(0, vocab, (targets,)), torch.rand(targets) + 0.1


def reference(hidden: Tensor, head: nn.Linear, targets: Tensor, weights: Tensor, rule: LogitRule) -> Tensor:
    """Whole logits, torch's own cross-entropy, autograd: nothing in common with the code under test."""
    logits = head(hidden) * rule.scale
    if rule.cap:
        logits = rule.cap * torch.tanh(logits / rule.cap)
    return (cross_entropy(logits, targets, reduction="none") * weights.to(logits.dtype)).sum()


def check(hidden: Tensor, head: nn.Linear, targets: Tensor, weights: Tensor, rule: LogitRule, outer: float) -> None:
    leaves = [hidden, *head.parameters()]
    loss, nll = supervised_loss(hidden, head, targets, weights, rule)
    assert loss.dtype == nll.dtype == torch.float32
    assert not nll.requires_grad
    ours = torch.autograd.grad(loss * outer, leaves)
    expected = reference(hidden, head, targets, weights, rule)
    theirs = torch.autograd.grad(expected * outer, leaves)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((nll * weights).sum(), expected.float().detach(), rtol=1e-5, atol=1e-5)
    for one, two in zip(ours, theirs, strict=True):
        assert one.dtype == two.dtype
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_value_and_gradients_are_those_of_cross_entropy(rule: LogitRule, bias: bool, dtype: torch.dtype) -> None:
    check(*inputs(37, bias=bias, dtype=dtype), rule, outer=1.0)


@pytest.mark.parametrize("targets", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_any_number_of_targets(targets: int) -> None:
    check(*inputs(targets, bias=True), RULES[3], outer=0.5)


@settings(max_examples=50)
@given(st.integers(0, 40), st.integers(1, 9), st.sampled_from(RULES), st.booleans(), st.floats(-3, 3))
def test_chunks_change_nothing(targets: int, chunk: int, rule: LogitRule, bias: bool, outer: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        check(*inputs(targets, bias=bias), rule, outer)


# Rule: added at once, the weight's gradient is the same, on top of what is there, and the backward pass gives no other.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", [0, 7, CHUNK + 5])
def test_a_gradient_may_be_added_at_once(targets: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORDS", 16)  # several blocks, the last one short
    hidden, head, wanted, weights = inputs(targets, bias=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected = torch.autograd.grad(
            supervised_loss(hidden, head, wanted, weights, RULES[3])[0], [hidden, *head.parameters()]
        )
        head.weight.grad = torch.ones_like(head.weight)
        loss, _ = supervised_loss(hidden, head, wanted, weights, RULES[3], head.weight.grad)
    loss.backward()
    for found, one in zip((hidden.grad, head.weight.grad - 1, head.bias.grad), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-5)


def in_bfloat16(device: str) -> tuple[Tensor, ...]:
    """Loss and gradients of three chunks, products in bfloat16, on a device."""
    hidden, head, targets, weights = inputs(2 * CHUNK + 5, hidden=16, vocab=64)
    head, leaf = head.to(device), hidden.detach().to(device).requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        loss, _ = supervised_loss(leaf, head, targets.to(device), weights.to(device), RULES[1])
    return tuple(x.detach().cpu() for x in (loss, *torch.autograd.grad(loss, [leaf, head.weight])))


# A CPU has no product of bfloat16 matrices that is added to float32 numbers: here it stands for NVIDIA's
def test_chunks_may_be_summed_by_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = in_bfloat16("cpu")
    calls = []

    def addmm(total: Tensor, one: Tensor, two: Tensor, *, out_dtype: torch.dtype, out: Tensor) -> Tensor:
        calls.append((one.dtype, two.dtype, out_dtype, total is out, total.dtype))
        return out.add_(one.float() @ two.float())

    monkeypatch.setattr(module, "_sums_in_float32", lambda factor: factor.dtype == torch.bfloat16)
    monkeypatch.setattr(torch, "addmm", addmm)
    found = in_bfloat16("cpu")
    assert calls == 3 * [(torch.bfloat16, torch.bfloat16, torch.float32, True, torch.float32)]
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2], rtol=2e-2, atol=2e-2 * float(expected[2].abs().mean()))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_gradients_of_a_cpu() -> None:
    for found, expected in zip(in_bfloat16("cuda"), in_bfloat16("cpu"), strict=True):
        assert float((found - expected).norm()) < 0.02 * float(expected.norm())


def test_large_logits_do_not_overflow() -> None:
    hidden, head, targets, weights = inputs(9)
    with torch.no_grad():
        head.weight *= 1e6
    loss, _ = supervised_loss(hidden, head, targets, weights, LogitRule())
    loss.backward()
    torch.testing.assert_close(loss, reference(hidden, head, targets, weights, LogitRule()))
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_a_frozen_head_or_frozen_body_gets_no_gradient() -> None:
    hidden, head, targets, weights = inputs(9, bias=True)
    head.requires_grad_(False)
    supervised_loss(hidden, head, targets, weights, LogitRule())[0].backward()
    assert head.weight.grad is None
    assert head.bias.grad is None
    expected = torch.autograd.grad(reference(hidden, head, targets, weights, LogitRule()), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-4, atol=1e-5)
    head.requires_grad_(True)
    supervised_loss(hidden.detach(), head, targets, weights, LogitRule())[0].backward()
    expected = torch.autograd.grad(reference(hidden.detach(), head, targets, weights, LogitRule()), head.weight)[0]
    torch.testing.assert_close(head.weight.grad, expected, rtol=1e-4, atol=1e-5)


def test_without_gradients_it_gives_the_loss_alone() -> None:
    hidden, head, targets, weights = inputs(9)
    with torch.no_grad():
        loss, nll = supervised_loss(hidden, head, targets, weights, LogitRule())
        expected = cross_entropy(head(hidden), targets, reduction="none")
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)
    assert not loss.requires_grad


def test_nan_comes_through() -> None:
    hidden, head, targets, weights = inputs(9)
    with torch.no_grad():
        head.weight[3, 4] = float("nan")
    loss, _ = supervised_loss(hidden, head, targets, weights, LogitRule())
    assert loss.isnan()


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_full_logits_never_exist() -> None:
    hidden, head, targets, weights = inputs(3 * CHUNK, vocab=200)
    with _Largest() as seen:
        supervised_loss(hidden, head, targets, weights, LogitRule())[0].backward()
    assert seen.largest == CHUNK * 200


def test_rules_of_the_families() -> None:
    assert LogitRule.of(LlamaConfig()) == LogitRule()
    assert LogitRule.of(GraniteConfig(logits_scaling=8.0)) == LogitRule(scale=1 / 8)
    assert LogitRule.of(CohereConfig(logit_scale=0.0625)) == LogitRule(scale=0.0625)
    assert LogitRule.of(Gemma2Config(final_logit_softcapping=30.0)) == LogitRule(cap=30.0)
    assert LogitRule.of(Gemma2Config(final_logit_softcapping=None)) == LogitRule()
    # the text part of a model of several kinds of input
    assert LogitRule.of(SimpleNamespace(get_text_config=lambda: GraniteConfig(logits_scaling=4.0))).scale == 0.25
