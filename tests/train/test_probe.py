"""The probe: gradients are those of training, projections keep inner products, micro-batch sizes agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.tiny_folder import write_tiny_folder

from sengi.cli.app import run as command
from sengi.data.packing import pack_step
from sengi.errors import InputError
from sengi.recipe_sources import resolve_recipe
from sengi.statistics.gradient_noise import noise_scale
from sengi.train import setup as setups
from sengi.train.distributed import World
from sengi.train.observer import Observer
from sengi.train.probe import SKETCH, gradient_sketches, probe, sketch
from sengi.train.setup import Setup, set_up
from sengi.train.step import run_step
from sengi.train.trainable import load_trainable

ALONE = World(0, 1, torch.device("cpu"))
ROWS = 600


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setups, "peak_flops", lambda *_: None)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 30,000 parameters and conversations of different lengths."""
    folder = tmp_path_factory.mktemp("probe")
    write_tiny_folder(folder / "model")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} plus {n % 7}?"},
                {"role": "assistant", "content": f"It is {n + n % 7}." + " Sure." * (n % 5)},
            ]
        }
        for n in range(ROWS)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def set_up_run(parts: Path, **values: Any) -> Setup:
    base = {
        "model_name_or_path": str(parts / "model"),
        "data": [{"path": str(parts / "train.jsonl")}],
        "output_dir": str(parts / "run"),
        "effective_batch_size": 32,
        "num_train_epochs": 2,
        "max_tokens_per_device": 256,
        "dtype": "float32",
    }
    return set_up(resolve_recipe(values=base | values), ALONE, Observer(), None)


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the gradient it was given, as one vector, and changes nothing."""

    def step(self, closure: Any = None) -> None:
        self.seen = torch.cat([p.grad.reshape(-1) for p in self.param_groups[0]["params"]]).numpy().copy()


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_the_sums_are_those_that_a_training_step_makes(parts: Path, reduction: str) -> None:
    # the ratio of sums over all micro-batches is the gradient that training would apply to their samples
    setup = set_up_run(parts, loss_reduction=reduction)
    base = load_trainable(setup)
    groups = setup.steps.step_samples(1).reshape(8, 4)
    sums, weights = gradient_sketches(base, groups, setup, ALONE.device, lambda done, total: None)
    recorder = Recorder([p for p in base.model.parameters() if p.requires_grad], lr=0.0)
    samples = groups.reshape(-1)
    recipe = setup.resolved.recipe.model_copy(update={"max_grad_norm": 0.0})
    packs = pack_step(setup.store.lengths[samples], 256)
    run_step(
        base.model,
        recorder,
        setup.store,
        samples,
        packs,
        recipe,
        ALONE,
        None,
        before_micro_batch=lambda number, members: None,
    )
    assert sums.shape[1] == len(recorder.seen) <= SKETCH
    np.testing.assert_allclose(sums.sum(axis=0) / weights.sum(), recorder.seen, atol=2e-6)
    tokens = np.array([setup.store.supervised[group].sum() for group in groups])
    expected = tokens / round(tokens.mean()) if reduction == "token" else np.ones(8)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_micro_batches_of_4_and_of_16_samples_agree(parts: Path) -> None:
    # the same samples of a real model: one truth, two estimates
    setup = set_up_run(parts)
    base = load_trainable(setup)
    samples = np.concatenate([setup.steps.step_samples(k) for k in range(1, 9)])
    found = []
    for each in (4, 16):
        groups = samples.reshape(-1, each)
        sums, weights = gradient_sketches(base, groups, setup, ALONE.device, lambda done, total: None)
        found.append(noise_scale(sums, weights, each))
    small, large = found
    assert small.critical_batch == pytest.approx(large.critical_batch, rel=0.35)
    assert max(small.low, large.low) <= min(small.high, large.high)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_projections_keep_inner_products(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(400_000, generator=generator)
    vectors = [common + torch.randn(400_000, generator=generator) for _ in range(3)]
    size = 4099
    sketches = [sketch([v[:1000].view(10, 100), v[1000:]], size) for v in vectors]
    for a in range(3):
        for b in range(3):
            exact = float(vectors[a] @ vectors[b])
            error = float(vectors[a].norm() * vectors[b].norm()) / size**0.5
            assert float(sketches[a] @ sketches[b]) == pytest.approx(exact, abs=6 * error)
    assert sketch([common[:50]], size).tolist() == common[:50].tolist()


def test_a_probe_repeats_and_leaves_nothing(parts: Path) -> None:
    setup = set_up_run(parts)
    first = probe(setup, 8, ALONE)
    assert first == probe(setup, 8, ALONE)
    assert first.samples_each == min(64, int(256 / setup.store.lengths.mean()), ROWS // 8)
    assert first.low < first.critical_batch < first.high
    assert not (parts / "run").exists()


def test_an_adapter_is_probed_by_its_own_gradients(parts: Path) -> None:
    found = probe(set_up_run(parts, use_peft=True, lora_r=4), 8, ALONE)
    assert found.noise > 0
    assert found.critical_batch > 0


@pytest.mark.parametrize(
    ("micro_batches", "values", "words"),
    [
        (7, {}, "an interval needs 8 micro-batches; raise it"),
        (ROWS + 1, {}, f"there are {ROWS} samples to draw from; lower"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    parts: Path, micro_batches: int, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        probe(set_up_run(parts, **values), micro_batches, ALONE)
    with pytest.raises(InputError, match="without torchrun"):
        probe(set_up_run(parts), 8, World(0, 2, torch.device("cpu")))


def test_the_plan_says_what_was_measured(parts: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {parts / 'model'}\ndata: [{{path: {parts / 'train.jsonl'}}}]\n"
        f"output_dir: {tmp_path / 'run'}\n"
        "effective_batch_size: 100\nnum_train_epochs: 2\nmax_tokens_per_device: 256\ndtype: float32\n"
    )
    assert command(["plan", str(recipe), "--probe", "8", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["steps"] == 12
    advice = {line["key"]: line for line in values["advice"]}
    assert advice["effective_batch_size"]["suggestion"] == "8"
    assert {"key", "value", "suggestion", "reason", "source", "confidence", "phase"} == advice["warmup_steps"].keys()
    measured = values["probe"]
    assert measured["micro_batches"] == 8
    assert measured["low"] < measured["critical_batch"]
    assert any("effective_batch_size 100" in sentence for sentence in measured["sentences"])
    assert command(["plan", str(recipe)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "12 optimizer steps in all, 6 an epoch: too few" in text
    assert "100 → 8" in text
    assert text.count("scored alike") + text.count("leaving it out cost nothing") == 1  # no reason is given twice
    assert not (tmp_path / "run").exists()
