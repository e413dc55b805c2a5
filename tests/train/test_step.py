from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.families import VOCAB, family
from tests.train.memory_run import ALONE, random_samples, small_recipe, write_store
from torch import Tensor
from torch.nn.functional import cross_entropy

from sengi.data.packing import pack_step
from sengi.data.packs import make_pack
from sengi.data.store import TokenStore
from sengi.errors import NonFiniteError
from sengi.model.supervised import SupervisedModel, prepare
from sengi.recipe import Recipe
from sengi.train.optimizer import build_optimizer
from sengi.train.step import StepResult, run_step, target_weights

COUNT = 23
REDUCTIONS = ["token", "sample"]
EVERYTHING = np.arange(COUNT)


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the gradients it was given and changes nothing."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.names = [name for name, _ in model.named_parameters()]
        self.seen: dict[str, Tensor] = {}

    def step(self, closure=None):
        params = self.param_groups[0]["params"]
        self.seen = {n: p.grad.clone() for n, p in zip(self.names, params, strict=True) if p.grad is not None}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("step") / "store", random_samples(COUNT, VOCAB))


@cache
def model() -> SupervisedModel:
    return prepare(copy.deepcopy(family("llama")))


def step(
    store: TokenStore,
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    samples: np.ndarray = EVERYTHING,
    budget: int = 64,
    before=lambda number, members: None,
) -> StepResult:
    packs = pack_step(store.lengths[samples], budget, halves=True)
    return run_step(net, optimizer, store, samples, packs, recipe, ALONE, None, before_micro_batch=before)


def gradients(store: TokenStore, recipe: Recipe, samples: np.ndarray, budget: int) -> tuple[StepResult, dict]:
    recorder = Recorder(model())
    result = step(store, model(), recorder, recipe, samples, budget)
    return result, recorder.seen


def plain_reference(store: TokenStore, reduction: str, samples: np.ndarray) -> tuple[float, dict[str, Tensor]]:
    """The same mean by transformers and torch alone, one sample at a time, in float64."""
    lm = copy.deepcopy(family("llama")).double()
    lm.set_attn_implementation("eager")
    sums, counts = [], []
    for sample in store.samples(samples):
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        logits = lm(input_ids=ids, use_cache=False).logits[0, :-1]
        labels = torch.where(torch.from_numpy(sample.loss_mask[1:]) == 1, ids[0, 1:], -100)
        sums.append(cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        counts.append(int((labels != -100).sum()))
    losses = torch.stack(sums)
    loss = losses.sum() / sum(counts) if reduction == "token" else (losses / torch.tensor(counts)).mean()
    loss.backward()
    return float(loss.detach()), {f"lm.{name}": p.grad.float() for name, p in lm.named_parameters()}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_step_equals_plain_transformers(store: TokenStore, reduction: str) -> None:
    recipe = small_recipe(loss_reduction=reduction, max_grad_norm=0)
    result, ours = gradients(store, recipe, EVERYTHING, 40)
    loss, theirs = plain_reference(store, reduction, EVERYTHING)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    norm = torch.nn.utils.get_total_norm(list(theirs.values()))
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert_close(ours, theirs)


@settings(max_examples=40)
@given(
    st.sampled_from(REDUCTIONS),
    st.integers(30, 200),
    st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=12),
)
def test_accumulated_micro_batches_equal_one_piece(
    store: TokenStore, reduction: str, budget: int, members: list[int]
) -> None:
    # a sample may be in a step twice (weights above 1)
    samples = np.array(members)
    recipe = small_recipe(loss_reduction=reduction, max_grad_norm=0)
    whole, one = gradients(store, recipe, samples, 10_000)
    parts, many = gradients(store, recipe, samples, budget)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
    assert_close(many, one)


def test_the_two_reductions_differ_where_lengths_do(store: TokenStore) -> None:
    losses = {r: gradients(store, small_recipe(loss_reduction=r), EVERYTHING, 64)[0].loss for r in REDUCTIONS}
    assert abs(losses["token"] - losses["sample"]) > 1e-3


@settings(max_examples=30)
@given(st.sampled_from(REDUCTIONS), st.integers(30, 100))
def test_target_weights_sum_to_one_over_the_step(store: TokenStore, reduction: str, budget: int) -> None:
    packs = pack_step(store.lengths, budget).ranks[0]
    targets = int(store.supervised.sum())
    total = sum(
        float(target_weights(make_pack(store.samples(m)), reduction, targets, COUNT).double().sum()) for m in packs
    )
    assert total == pytest.approx(1.0, rel=1e-5)


def test_the_norm_is_before_clipping_and_the_update_after(store: TokenStore) -> None:
    free, unclipped = gradients(store, small_recipe(max_grad_norm=0), EVERYTHING, 64)
    limit = free.grad_norm / 10
    held, clipped = gradients(store, small_recipe(max_grad_norm=limit), EVERYTHING, 64)
    assert held.grad_norm == pytest.approx(free.grad_norm, rel=1e-6)
    assert_close(clipped, {name: grad / 10 for name, grad in unclipped.items()})
    _, same = gradients(store, small_recipe(max_grad_norm=free.grad_norm * 2), EVERYTHING, 64)
    assert_close(same, unclipped)


def test_every_micro_batch_is_announced_with_its_store_indices(store: TokenStore) -> None:
    told: list[tuple[int, list[int]]] = []
    samples = EVERYTHING[::-1]
    step(store, model(), Recorder(model()), small_recipe(), samples, 40, lambda n, m: told.append((n, list(m))))
    assert [number for number, _ in told] == list(range(len(told)))
    assert len(told) > 3
    assert sorted(index for _, members in told for index in members) == EVERYTHING.tolist()
    assert all(store.lengths[members].sum() <= 40 for _, members in told)


def weights_of(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def assert_untouched(net: torch.nn.Module, before: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter.nan_to_num(7.0), before[name].nan_to_num(7.0)), name
        assert parameter.grad is None or not parameter.grad.any(), name
    assert not optimizer.state


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_stops_before_the_update(store: TokenStore, value: float) -> None:
    net = copy.deepcopy(model())
    with torch.no_grad():
        net.lm.model.layers[1].mlp.down_proj.weight[3, 4] = value
    optimizer, before = build_optimizer(net, small_recipe(learning_rate=1e-3)), weights_of(net)
    with pytest.raises(NonFiniteError, match=r"loss is (nan|inf), gradient norm is"):
        step(store, net, optimizer, small_recipe())
    assert_untouched(net, before, optimizer)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_update(store: TokenStore, value: float) -> None:
    # the loss is fine, one number in one gradient of one micro-batch is not
    net = copy.deepcopy(model())
    calls = []

    def spoil(grad: Tensor) -> Tensor:
        calls.append(1)
        grad = grad.clone()
        if len(calls) == 2:
            grad[5, 5] = value
        return grad

    net.lm.model.layers[0].self_attn.q_proj.weight.register_hook(spoil)
    optimizer, before = build_optimizer(net, small_recipe(learning_rate=1e-3)), weights_of(net)
    with pytest.raises(NonFiniteError, match=r"loss is \d+\.\d+, gradient norm is (nan|inf)"):
        step(store, net, optimizer, small_recipe(), budget=40)
    assert len(calls) > 2
    assert_untouched(net, before, optimizer)


def test_giving_up_between_micro_batches_leaves_the_weights(store: TokenStore) -> None:
    net = copy.deepcopy(model())
    optimizer, before = build_optimizer(net, small_recipe(learning_rate=1e-3)), weights_of(net)

    def stop(number: int, members: list[int]) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step(store, net, optimizer, small_recipe(), budget=40, before=stop)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name])
    assert not optimizer.state
    # and the half-summed gradients do not reach the next step
    fresh = copy.deepcopy(model())
    result = step(store, net, optimizer, small_recipe(), budget=40)
    other = step(store, fresh, build_optimizer(fresh, small_recipe(learning_rate=1e-3)), small_recipe(), budget=40)
    assert result.loss == other.loss
    assert result.grad_norm == other.grad_norm


def test_training_learns(store: TokenStore) -> None:
    net = copy.deepcopy(model())
    recipe = small_recipe(learning_rate=3e-3)
    optimizer = build_optimizer(net, recipe)
    losses = [step(store, net, optimizer, recipe).loss for _ in range(12)]
    assert losses[-1] < 0.6 * losses[0]


def test_seconds_of_data_are_measured(store: TokenStore) -> None:
    assert 0 < gradients(store, small_recipe(), EVERYTHING, 64)[0].data_seconds < 5


def test_bfloat16_is_only_the_computation(tmp_path: Path) -> None:
    # two short samples: bfloat16 is slow on a CPU that does not have it
    store = write_store(tmp_path / "store", random_samples(2, VOCAB, longest=5))
    net = copy.deepcopy(model())
    optimizer, samples = Recorder(net), np.arange(2)
    packs = pack_step(store.lengths, 20)
    half = run_step(
        net,
        optimizer,
        store,
        samples,
        packs,
        small_recipe(),
        ALONE,
        torch.bfloat16,
        before_micro_batch=lambda number, members: None,
    )
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert all(grad.dtype == torch.float32 for grad in optimizer.seen.values())
    full = step(store, net, Recorder(net), small_recipe(), samples, 20)
    assert half.loss == pytest.approx(full.loss, rel=0.02)
    assert half.loss != full.loss


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_first_half_of_the_samples_is_measured_on_the_way(store: TokenStore, reduction: str) -> None:
    # half_grad_norm is the norm that a step of those samples alone would have, half_share their share of it
    recipe = small_recipe(loss_reduction=reduction)
    first = EVERYTHING[: COUNT // 2]
    whole, _ = gradients(store, recipe, EVERYTHING, 64)
    half, _ = gradients(store, recipe, first, 1_000_000)
    share = len(first) / COUNT if reduction == "sample" else store.supervised[first].sum() / store.supervised.sum()
    assert whole.half_share == pytest.approx(share, rel=1e-6)
    assert whole.half_grad_norm == pytest.approx(half.grad_norm, rel=1e-4)
    assert (half.half_grad_norm, half.half_share) == (None, None)  # one micro-batch tells nothing of noise
