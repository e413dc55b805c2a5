from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.families import VOCAB, family
from tests.train.memory_run import random_samples, write_store
from torch import Tensor
from torch.nn.functional import cross_entropy

from sengi.conversation import Sample
from sengi.data.store import TokenStore
from sengi.errors import NonFiniteError
from sengi.evaluate.heldout import heldout_items, heldout_losses, heldout_scores
from sengi.model.supervised import SupervisedModel, prepare
from sengi.statistics.differences import paired_difference

COUNT = 17
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> SupervisedModel:
    return prepare(copy.deepcopy(family("llama")))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    sources = ["a", "b", "a", ""] * 4 + ["b"]
    phases = ["first"] * 9 + [""] * 8
    folder = tmp_path_factory.mktemp("heldout")
    return write_store(folder / "store", random_samples(COUNT, VOCAB), sources, phases)


def reference(store: TokenStore) -> np.ndarray:
    """Each sample alone through the model's own logits."""
    lm, sums = family("llama"), []
    with torch.no_grad():
        for sample in store.samples(np.arange(len(store))):
            ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
            nll = cross_entropy(lm(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:], reduction="none")
            sums.append(float(nll[torch.from_numpy(sample.loss_mask[1:]) == 1].double().sum()))
    return np.array(sums)


def alone(tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize("budget", [8, 40, 10_000])
def test_each_samples_loss_is_its_own_whatever_the_budget(
    model: SupervisedModel, store: TokenStore, budget: int
) -> None:
    # a budget below the longest sample is raised to it: held-out data may be longer than training data
    found = heldout_losses(model, store, budget, 0, 1, CPU, alone)
    np.testing.assert_allclose(found, reference(store), rtol=1e-5)


@pytest.mark.parametrize("ranks", [2, 3, 20])
def test_the_ranks_parts_add_up(model: SupervisedModel, store: TokenStore, ranks: int) -> None:
    # also with more ranks than samples
    parts = [heldout_losses(model, store, 64, rank, ranks, CPU, alone) for rank in range(ranks)]
    np.testing.assert_allclose(sum(parts), reference(store), rtol=1e-5)
    assert all((np.count_nonzero(column) == 1) for column in np.array(parts).T)  # each sample on one rank


def test_nothing_of_the_model_changes(model: SupervisedModel, store: TokenStore) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    heldout_losses(model, store, 64, 0, 1, CPU, alone)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_one_item_a_sample_and_their_weighted_mean_is_the_loss(model: SupervisedModel, store: TokenStore) -> None:
    sums = reference(store)
    items = heldout_items(store, sums)
    assert [item["id"] for item in items] == [str(index) for index in range(COUNT)]
    assert [item["question"] for item in items] == [f"data.jsonl:{row + 1}" for row in range(COUNT)]
    assert {(item["task"], item["metric"]) for item in items} == {("heldout", "loss")}
    for name in ("all", "source=a", "phase=first"):
        key, _, value = name.partition("=")
        mine = [item for item in items if name == "all" or item[key] == value]
        loss = np.average([item["correct"] for item in mine], weights=[item["weight"] for item in mine])
        (row,) = [row for row in heldout_scores(store, sums) if row["group"] == name]
        assert loss == pytest.approx(row["value"])


def test_items_of_two_checkpoints_pair(store: TokenStore) -> None:
    # A tenth of a nat less on every sample: a clear difference, though samples differ among themselves by more.
    sums = store.supervised * np.random.default_rng(0).normal(2.0, 0.5, COUNT)
    before, after = heldout_items(store, sums), heldout_items(store, sums - 0.1 * store.supervised)
    weights = [item["weight"] for item in before]
    change = paired_difference([i["correct"] for i in before], [i["correct"] for i in after], weights=weights)
    assert change.difference.value == pytest.approx(-0.1)
    assert change.difference.high < -0.0999


def test_prompt_hash_tells_other_tokens_and_other_masks(tmp_path: Path) -> None:
    samples = random_samples(3, VOCAB)
    ids = samples[1].input_ids.copy()
    ids[0] += 1
    mask = 1 - samples[2].loss_mask
    mask[-1] = 1
    others = [samples[0], Sample(ids, samples[1].loss_mask), Sample(samples[2].input_ids, mask)]
    one, other = (write_store(tmp_path / name, rows) for name, rows in (("one", samples), ("other", others)))
    pairs = zip(heldout_items(one, np.ones(3)), heldout_items(other, np.ones(3)), strict=True)
    assert [a["prompt_hash"] == b["prompt_hash"] for a, b in pairs] == [True, False, False]


def test_scores_of_all_sources_and_phases(model: SupervisedModel, store: TokenStore) -> None:
    sums = reference(store)
    rows = {row["group"]: row for row in heldout_scores(store, sums)}
    assert list(rows) == ["all", "source=a", "source=b", "phase=first"]
    chosen = {
        "all": np.full(COUNT, True),
        "source=a": np.array([True, False, True, False] * 4 + [False]),
        "source=b": np.array([False, True, False, False] * 4 + [True]),
        "phase=first": np.arange(COUNT) < 9,
    }
    for name, row in rows.items():
        mine = chosen[name]
        # the mean over tokens, not over samples
        assert row["value"] == pytest.approx(sums[mine].sum() / store.supervised[mine].sum())
        assert row["low"] < row["value"] < row["high"]
        assert row["n"] == mine.sum()
        assert (row["task"], row["metric"]) == ("heldout", "loss")


@settings(max_examples=2)
@given(st.integers(0, 10_000))
def test_the_interval_covers(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    # 300 draws of 60 samples whose loss a token differs by sample: about 95% of the intervals hold the truth
    folder: Path = tmp_path_factory.mktemp("cover")
    population = write_store(folder / "store", random_samples(60, VOCAB, seed=seed))
    rng = np.random.default_rng(seed)
    counts = population.supervised
    hits = 0
    for _ in range(300):
        sums = counts * rng.normal(2.0, 0.5, 60)
        (row,) = [row for row in heldout_scores(population, sums) if row["group"] == "all"]
        hits += row["low"] <= 2.0 <= row["high"]
    assert 0.90 < hits / 300 <= 0.99


def test_a_broken_model_has_no_loss(store: TokenStore) -> None:
    broken = prepare(copy.deepcopy(family("llama")))
    next(iter(broken.parameters())).data[:] = float("nan")
    with pytest.raises(NonFiniteError, match=rf":1: its held-out loss is nan \({COUNT} of {COUNT} samples are so\)"):
        heldout_losses(broken, store, 64, 0, 1, CPU, alone)
