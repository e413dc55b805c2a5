from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tests.model.families import FAMILIES, VOCAB, family
from torch import Tensor

from sengi.conversation import Sample
from sengi.data.packs import Pack, make_pack
from sengi.model.checkpointing import DIALS, Dial, checkpoint_layers, transformer_layers
from sengi.model.live_bytes import LiveBytes
from sengi.model.supervised import SupervisedModel, prepare

LENGTHS = (9, 17, 4)


def pack() -> Pack:
    draw = np.random.default_rng(0)
    return make_pack([Sample(draw.integers(3, VOCAB, n).astype(np.int32), np.ones(n, np.uint8)) for n in LENGTHS])


def with_dial(name: str, dial: Dial) -> SupervisedModel:
    model = prepare(copy.deepcopy(family(name)))
    checkpoint_layers(transformer_layers(model), dial)
    return model


def gradients(model: SupervisedModel, autocast: torch.dtype | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    data = pack()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        loss, nll = model(data, torch.full((len(data.targets),), 0.1))
    loss.backward()
    return nll, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# The dial changes speed and memory, never a bit of the result, in every family.
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_bit_equal_at_every_dial(name: str) -> None:
    nll, wanted = gradients(with_dial(name, "none"))
    assert wanted
    for dial in DIALS[1:]:
        again, found = gradients(with_dial(name, dial))
        assert torch.equal(again, nll)
        assert found.keys() == wanted.keys()
        for parameter, grad in wanted.items():
            assert torch.equal(found[parameter], grad), (dial, parameter)


def test_gradients_are_bit_equal_under_autocast() -> None:
    _, wanted = gradients(with_dial("llama", "none"), torch.bfloat16)
    for dial in DIALS[1:]:
        _, found = gradients(with_dial("llama", dial), torch.bfloat16)
        assert all(torch.equal(found[name], grad) for name, grad in wanted.items())


# Each dial keeps less than the one before it; names of parameters stay, so checkpoints do too.
def test_each_dial_keeps_less() -> None:
    kept = []
    for dial in DIALS:
        model = with_dial("llama", dial)
        data = pack()
        with LiveBytes([*model.parameters(), *model.buffers()]) as live:
            loss, _ = model(data, torch.ones(len(data.targets)))
            kept.append(live.now)
            loss.backward()
        assert [name for name, _ in model.named_parameters()] == [
            name for name, _ in with_dial("llama", "none").named_parameters()
        ]
    assert kept[0] > 1.3 * kept[1] > 1.3 * kept[2]


def test_evaluation_without_gradients_computes_once() -> None:
    model, calls = with_dial("llama", "full"), []
    model.lm.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(pack(), torch.ones(len(pack().targets)))
    assert len(calls) == 1
    gradients(model)
    assert len(calls) == 3  # forward, and again for the backward pass
