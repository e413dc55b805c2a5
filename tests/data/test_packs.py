from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.data.conversation import Sample
from sengi.data.packs import make_pack


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    ids = [draw(st.lists(st.integers(0, 99), min_size=n, max_size=n)) for n in lengths]
    masks = [draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)) for n in lengths]
    return [Sample(np.array(i, np.int32), np.array(m, np.uint8)) for i, m in zip(ids, masks, strict=True)]


@settings(max_examples=200)
@given(samples())
def test_targets_are_the_supervised_tokens_behind_a_token_of_their_own_document(documents) -> None:
    pack = make_pack(documents)
    wanted = [
        (number, position, int(document.input_ids[position]))
        for number, document in enumerate(documents)
        for position in range(1, len(document.input_ids))  # the first token has nothing before it
        if document.loss_mask[position]
    ]
    bounds = pack.bounds.tolist()
    found = [
        (document, at + 1 - bounds[document], target)
        for document, at, target in zip(
            pack.document.tolist(), pack.predict_at.tolist(), pack.targets.tolist(), strict=True
        )
    ]
    assert found == wanted
    # the position that predicts lies in the same document
    assert all(bounds[d] <= at < bounds[d + 1] - 1 for d, at in zip(pack.document, pack.predict_at, strict=True))
    assert pack.counts.tolist() == [document.num_supervised for document in documents]
    assert int(pack.counts.sum()) == len(pack.targets)


@settings(max_examples=100)
@given(samples())
def test_documents_lie_end_to_end_with_positions_from_zero(documents) -> None:
    pack = make_pack(documents)
    lengths = [len(document.input_ids) for document in documents]
    assert pack.input_ids.tolist() == [[int(i) for document in documents for i in document.input_ids]]
    assert pack.position_ids.tolist() == [[p for length in lengths for p in range(length)]]
    assert pack.bounds.diff().tolist() == lengths
    assert pack.bounds[0] == 0
    assert pack.bounds.dtype == torch.int32
    assert pack.longest == max(lengths)


def test_an_empty_turn_is_a_pack_without_targets() -> None:
    pack = make_pack([])
    assert pack.input_ids.shape == (1, 2)
    assert len(pack.targets) == len(pack.predict_at) == len(pack.document) == 0
    assert pack.counts.tolist() == [0]


def test_to_moves_every_tensor() -> None:
    pack = make_pack([]).to(torch.device("meta"))
    assert pack.longest == 2
    assert all(value.device.type == "meta" for value in vars(pack).values() if isinstance(value, torch.Tensor))
