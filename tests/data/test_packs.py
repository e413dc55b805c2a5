from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.conversation import Sample
from sengi.data.packs import Pack, computed_work, make_pack


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


@st.composite
def documents_that_begin_alike(draw: st.DrawFn) -> list[Sample]:
    beginning = draw(st.lists(st.integers(0, 99), max_size=9))
    rest = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=5))
    masks = [draw(st.lists(st.integers(0, 1), min_size=len(r), max_size=len(r))) for r in rest]
    early = draw(st.integers(0, len(beginning)))  # a target in the beginning of one document
    found = []
    for number, (own, mask) in enumerate(zip(rest, masks, strict=True)):
        before = [int(number == 0 and at == early) for at in range(len(beginning))]
        found.append(Sample(np.array(beginning + own, np.int32), np.array(before + mask, np.uint8)))
    return found


def contexts(pack: Pack) -> list[list[int]]:
    """The tokens that each target is predicted from, in order, as attention and positions give them."""
    row, positions = pack.input_ids[0].tolist(), pack.position_ids[0].tolist()
    keys = list(range(len(row))) if pack.keys is None else pack.keys.tolist()
    documents = [keys[a:b] for a, b in itertools.pairwise(pack.key_bounds.tolist())]
    assert all([positions[k] for k in document] == list(range(len(document))) for document in documents)
    last = {document[-1]: document for document in documents}
    found = []
    for at in pack.predict_at.tolist():
        # the document whose part of the row holds the place
        owner = min((end for end in last if end >= at), default=None)
        assert owner is not None
        found.append([row[k] for k in last[owner][: positions[at] + 1]])
    return found


@settings(max_examples=100)
@given(documents_that_begin_alike())
def test_a_lean_pack_predicts_the_same_targets_from_the_same_tokens(documents: list[Sample]) -> None:
    whole, lean = make_pack(documents), make_pack(documents, lean=True)
    for name in ("targets", "document", "counts"):
        assert torch.equal(getattr(whole, name), getattr(lean, name))
    assert contexts(lean) == contexts(whole)
    assert lean.bounds.diff().sum() == lean.input_ids.shape[1] <= whole.input_ids.shape[1]
    assert lean.longest <= whole.longest
    # pairs of a token and one that it sees or is, of which half a square has n / 2 fewer
    for pack in (whole, lean):
        lengths = pack.key_bounds.diff().tolist()
        once = sum(n * n - pack.shared**2 for n in lengths[pack.shared > 0 :]) + pack.shared**2
        assert pack.squared_lengths == once
    assert whole.squared_lengths == sum(len(document.input_ids) ** 2 for document in documents)
    assert computed_work(documents) == (lean.input_ids.numel(), lean.squared_lengths)


def test_a_lean_pack_computes_a_shared_beginning_once_and_nothing_behind_the_last_target() -> None:
    # 10 tokens in common, of which the last predicts the first document's first target and stays with its document
    beginning = list(range(50, 60))
    samples = [
        Sample(np.array([*beginning, 1, 2, 3, 4], np.int32), np.array([0] * 10 + [1, 1, 0, 0], np.uint8)),
        Sample(np.array([*beginning, 5, 6, 7], np.int32), np.array([0] * 10 + [0, 0, 1], np.uint8)),
        Sample(np.array([*beginning, 8], np.int32), np.zeros(11, np.uint8)),  # learns nothing: not computed at all
    ]
    pack = make_pack(samples, lean=True)
    assert pack.shared == 9
    assert pack.input_ids.tolist() == [[*beginning[:9], 59, 1, 59, 5, 6]]
    assert pack.position_ids.tolist() == [[*range(9), 9, 10, 9, 10, 11]]
    assert pack.bounds.tolist() == [0, 9, 11, 14]
    assert pack.key_bounds.tolist() == [0, 9, 20, 32]
    assert pack.predict_at.tolist() == [9, 10, 13]
    assert pack.targets.tolist() == [1, 2, 7]
    assert pack.counts.tolist() == [2, 1, 0]
    assert pack.longest == 12
    assert pack.squared_lengths == 81 + (121 - 81) + (144 - 81)


def test_a_beginning_that_saves_next_to_nothing_is_not_shared() -> None:
    long = [Sample(np.concatenate([[7], np.full(400, n)]).astype(np.int32), np.ones(401, np.uint8)) for n in (1, 2)]
    for sample in long:
        sample.loss_mask[:3] = 0
    assert make_pack(long, lean=True).shared == 0


def test_a_lean_pack_without_targets_is_a_whole_one() -> None:
    samples = [Sample(np.arange(n, dtype=np.int32), np.zeros(n, np.uint8)) for n in (3, 4)]
    assert make_pack(samples, lean=True).input_ids.shape == (1, 7)
