from __future__ import annotations

import copy

import pytest
import torch
from tests.model.families import FAMILIES, family
from torch import Tensor, nn

from sengi.conversation import Sample
from sengi.data.packs import make_pack
from sengi.model.embedding import add_gradient_at_once
from sengi.model.supervised import SupervisedModel, prepare


def gradient(embedding: nn.Embedding, ids: Tensor, along: Tensor) -> Tensor:
    embedding.weight.grad = torch.full_like(embedding.weight, 0.25)  # of an earlier micro-batch
    (embedding(ids) * along).sum().backward()
    return embedding.weight.grad


# Rule: the weight's gradient is torch's, added to what is there; a padding token gets none.
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_adds_what_torch_adds(padding_idx: int | None) -> None:
    plain = nn.Embedding(7, 5, padding_idx=padding_idx, dtype=torch.float64)
    ours = copy.deepcopy(plain)
    add_gradient_at_once(ours)
    ids = torch.tensor([[0, 3, 3, 6, 0, 0]])
    along = torch.randn(1, 6, 5, dtype=torch.float64)
    assert torch.equal(ours(ids), plain(ids))
    torch.testing.assert_close(gradient(ours, ids, along), gradient(plain, ids, along))


def test_without_a_gradient_to_add_to_there_is_one_as_ever() -> None:
    embedding = nn.Embedding(7, 5)
    add_gradient_at_once(embedding)
    embedding(torch.tensor([1])).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[1].tolist() == [1.0] * 5
    with torch.no_grad():
        assert not embedding(torch.tensor([1])).requires_grad


@pytest.mark.parametrize("kind", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_others_stay_as_they_are(kind: dict[str, float]) -> None:
    class Scaled(nn.Embedding):
        pass

    for embedding in (Scaled(7, 5), nn.Embedding(7, 5, **kind)):  # type: ignore[arg-type]
        add_gradient_at_once(embedding)
        assert "forward" not in vars(embedding)


# Rule: a whole model gets the same gradients, also where head and embedding add to one weight.
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_gets_the_gradients_it_got(name: str) -> None:
    def gradients(model: SupervisedModel) -> dict[str, Tensor]:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for rows in ([5, 6, 7, 8], [9, 5, 4]):  # two micro-batches
            pack = make_pack([Sample(torch.tensor(rows).int().numpy(), torch.ones(len(rows)).byte().numpy())])
            model(pack, torch.ones(len(pack.targets)))[0].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, ours = (prepare(copy.deepcopy(family(name))) for _ in range(2))
    ours.add_gradients_at_once()
    expected, found = gradients(plain), gradients(ours)
    assert set(found) == set(expected)
    for parameter, grad in expected.items():
        torch.testing.assert_close(found[parameter], grad, rtol=1e-5, atol=1e-7)
