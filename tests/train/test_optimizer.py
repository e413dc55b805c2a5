from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.families import family
from tests.train.memory_run import ALONE, small_recipe
from torch import nn

from sengi.train.distributed import World
from sengi.train.optimizer import (
    build_optimizer,
    clear_gradients,
    clip_gradients,
    gradient_norm,
    learning_rate,
    set_learning_rate,
)


@settings(max_examples=100)
@given(st.sampled_from(["constant", "cosine", "linear"]), st.integers(0, 20), st.integers(21, 60))
def test_the_rate_rises_to_the_peak_and_follows_its_shape(kind: str, warmup: int, steps: int) -> None:
    recipe = small_recipe(learning_rate=2e-3, lr_scheduler_type=kind, warmup_steps=warmup)
    rates = [learning_rate(recipe, step, steps) for step in range(1, steps + 1)]
    # every step learns: no rate of exactly 0, and none above the peak
    assert all(0 < rate <= 2e-3 for rate in rates)
    # linear warm-up, the first step behind it has the peak
    assert rates[:warmup] == pytest.approx([2e-3 * (k + 1) / (warmup + 1) for k in range(warmup)])
    assert rates[warmup] == 2e-3
    rest = rates[warmup:]
    if kind == "constant":
        assert rest == [2e-3] * len(rest)
    else:
        assert rest == sorted(rest, reverse=True)
    if kind == "linear":
        assert rest == pytest.approx([2e-3 * (1 - k / len(rest)) for k in range(len(rest))])
    if kind == "cosine":
        assert rest == pytest.approx([1e-3 * (1 + math.cos(math.pi * k / len(rest))) for k in range(len(rest))])


@pytest.mark.parametrize(("share", "steps", "expected"), [(0.03, 100, 3), (0.03, 101, 4), (0.5, 3, 2), (0, 10, 0)])
def test_a_share_below_one_is_of_all_steps_rounded_up(share: float, steps: int, expected: int) -> None:
    recipe = small_recipe(warmup_steps=share)
    assert recipe.warmup_count(steps) == expected
    peak = recipe.learning_rate
    assert learning_rate(recipe, expected + 1, steps) == peak
    assert expected == 0 or learning_rate(recipe, expected, steps) < peak


def test_a_warm_up_longer_than_the_run_never_reaches_the_peak() -> None:
    recipe = small_recipe(warmup_steps=100, lr_scheduler_type="cosine")
    assert max(learning_rate(recipe, step, 5) for step in range(1, 6)) < 0.06 * recipe.learning_rate


def test_one_step_has_the_peak() -> None:
    for kind in ("constant", "cosine", "linear"):
        recipe = small_recipe(lr_scheduler_type=kind)
        assert learning_rate(recipe, 1, 1) == recipe.learning_rate


def test_adamw_with_the_recipes_constants_and_decay_on_matrices_only() -> None:
    lm = copy.deepcopy(family("qwen2, window"))  # has biases and norms
    recipe = small_recipe(weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-7, learning_rate=3e-4)
    optimizer = build_optimizer(lm, recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.1 for p in group["params"]}
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.99), 1e-7, 3e-4)
    everything = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in lm.parameters())  # each once, tied ones too
    for name, parameter in lm.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim >= 2), name


def test_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, small_recipe())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_one_process_on_a_cpu_keeps_the_memory_of_its_gradients() -> None:
    layer = nn.Linear(3, 3)
    optimizer = build_optimizer(layer, small_recipe())
    clear_gradients(optimizer, ALONE)
    places = [p.grad.data_ptr() for p in layer.parameters() if p.grad is not None]
    layer(torch.ones(3)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
    clear_gradients(optimizer, ALONE)
    assert [p.grad.data_ptr() for p in layer.parameters() if p.grad is not None and not p.grad.any()] == places
    assert len(places) == 2
    clear_gradients(optimizer, World(0, 2, torch.device("cpu")))
    assert [p.grad for p in layer.parameters()] == [None, None]


def test_updates_are_those_of_the_adamw_paper() -> None:
    # Loshchilov and Hutter, algorithm 2, in float64 by hand
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=False)
    recipe = small_recipe(weight_decay=0.1, learning_rate=1e-2)
    optimizer = build_optimizer(layer, recipe)
    weight = layer.weight.detach().double()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 4):
        rate = learning_rate(recipe, step, 3) / step  # the rate may change from step to step
        set_learning_rate(optimizer, rate)
        grad = torch.randn(3, 4)
        layer.weight.grad = grad
        optimizer.step()
        first = 0.9 * first + 0.1 * grad.double()
        second = 0.95 * second + 0.05 * grad.double() ** 2
        weight *= 1 - rate * 0.1
        weight -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        torch.testing.assert_close(layer.weight.detach().double(), weight, rtol=1e-5, atol=1e-7)


def parameters(*grads: torch.Tensor | None) -> list[nn.Parameter]:
    result = []
    for grad in grads:
        result.append(nn.Parameter(torch.zeros_like(grad) if grad is not None else torch.zeros(2)))
        result[-1].grad = grad
    return result


def test_norm_is_global_and_skips_what_has_no_gradient() -> None:
    params = parameters(torch.full((2, 2), 3.0), None, torch.zeros(0), torch.tensor([8.0]))
    assert float(gradient_norm(params, ALONE)) == pytest.approx(10.0)
    assert float(gradient_norm([], ALONE)) == 0.0
    assert gradient_norm(params, ALONE).dtype == torch.float64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_norm_hides_nothing(value: float) -> None:
    norm = gradient_norm(parameters(torch.ones(3), torch.tensor([1.0, value])), ALONE)
    assert not math.isfinite(norm)


@pytest.mark.parametrize(("limit", "scale"), [(5.0, 0.5), (10.0, 1.0), (20.0, 1.0), (0.0, 1.0)])
def test_clipping_scales_down_only(limit: float, scale: float) -> None:
    params = parameters(torch.tensor([6.0]), None, torch.tensor([8.0]))
    clip_gradients(params, 10.0, limit)
    assert [float(p.grad) for p in params if p.grad is not None] == [6.0 * scale, 8.0 * scale]
