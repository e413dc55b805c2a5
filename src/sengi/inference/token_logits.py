"""Logits at chosen tokens of a prefix tree, and the trial of whether a model family can be computed along one.

Shapes: R tokens asked for, E hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from sengi.inference.lent_model import lent
from sengi.inference.onednn import HEAD_ROWS
from sengi.inference.prefix_tree import Pack, PrefixTree
from sengi.inference.tree_attention import NAME, TreeWalk
from sengi.model.head import LogitRule

TRIED = 3  # tokens at the end of a text whose logits are compared in the trial
LOGITS = 2**21  # logits at a time, 8 MiB in float32: a larger matrix would be the largest tensor of a small model

Chunks = Iterator[tuple[slice, Tensor]]


class TreeLogits:
    """Packs of a tree, every shared beginning computed once; use inside ``lent(model, NAME)``.

    Args:
        model: passes :func:`shares_prefixes`.
        tree: of what is to be computed.
    """

    def __init__(self, model: PreTrainedModel, tree: PrefixTree) -> None:
        self._model = model
        self._tree = tree
        self._rule = LogitRule.of(model.config)
        self.walk = TreeWalk(tree.longest, model.device)

    def of(self, pack: Pack, rows: NDArray[np.int64]) -> Chunks:
        """Logits of tokens of the next pack; the packs of a tree must come in order, none left out.

        Args:
            pack: the next one.
            rows: (R,), places in the layout, sorted, at least one.

        Yields:
            A slice of ``rows`` and the float32 (rows of the slice, V) logits there.
        """
        hidden = self._hidden(pack)[torch.as_tensor(rows - pack.begin, device=self._model.device)]
        head = self._model.get_output_embeddings()
        step = HEAD_ROWS if hidden.device.type == "cpu" else max(1, LOGITS // head.weight.shape[0])
        for start in range(0, len(rows), step):
            part = slice(start, min(start + step, len(rows)))
            yield part, self._rule.apply_(head(hidden[part]).float())

    def skip(self, pack: Pack) -> None:
        """Compute the next pack for the sake of its descendants: no logit of it is needed."""
        self._hidden(pack)

    def _hidden(self, pack: Pack) -> Tensor:
        """Last hidden states of a pack, (T, E)."""
        device = self._model.device
        positions = np.concatenate([np.arange(depth, depth + length) for _, depth, length, _ in pack.spans])
        self.walk.enter(pack)
        output = self._model.get_decoder()(
            input_ids=torch.from_numpy(self._tree.token_ids(pack)).unsqueeze(0).to(device),
            position_ids=torch.from_numpy(positions).unsqueeze(0).to(device),
            use_cache=False,
            tree_walk=self.walk,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


class PlainLogits:
    """One text at a time through the model's own forward: right for every family."""

    def __init__(self, model: PreTrainedModel, tree: PrefixTree) -> None:
        self._model = model
        self._tree = tree
        self._can_select = "logits_to_keep" in inspect.signature(model.forward).parameters

    def of(self, pack: Pack, rows: NDArray[np.int64]) -> Chunks:
        """As :meth:`TreeLogits.of`, for a pack that is one whole text."""
        device = self._model.device
        ids = torch.from_numpy(self._tree.token_ids(pack)).unsqueeze(0).to(device)
        step = max(1, LOGITS // self._model.config.get_text_config().vocab_size)
        where = torch.as_tensor(rows - pack.begin, device=device)
        if self._can_select:
            logits = self._model(input_ids=ids, use_cache=False, logits_to_keep=where).logits[0]
        else:
            logits = self._model(input_ids=ids, use_cache=False).logits[0, where]
        for start in range(0, len(rows), step):
            part = slice(start, min(start + step, len(rows)))
            yield part, logits[part].float()


@torch.no_grad()
def shares_prefixes(model: PreTrainedModel) -> bool:
    """Whether the packs of a tree give what the model's own forward gives, tried on a small tree.

    Two texts fork after 6 tokens; packs of 4 tokens cut the trunk and the branches. Logits at the ends of the texts,
    which depend on all of them, must be equal but for rounding, and those of the second branch must not move when the
    first one's tokens change: layers that carry state along the row (state spaces, short convolutions) reach from
    branch to branch.
    """
    ids = (np.arange(20) * 7919 + 11) % max(2, min(model.config.get_text_config().vocab_size, 30_000))
    trunk, one, two = ids[:6].tolist(), ids[6:12].tolist(), ids[12:20].tolist()
    texts = [trunk + one, trunk + two]
    exact = next(model.parameters()).dtype == torch.float32
    tensors = [torch.tensor([text], device=model.device) for text in texts]
    expected = [model(input_ids=text, use_cache=False).logits[0, -TRIED:].float().clone() for text in tensors]
    try:
        with lent(model, NAME):
            ours = _tree_logits(model, texts)
            moved = _tree_logits(model, [trunk + one[::-1], trunk + two])
    except torch.OutOfMemoryError:
        raise  # says nothing about the family, and one text at a time would only hide it
    except (ValueError, TypeError, AttributeError, RuntimeError):
        # No attention function is taken, no hidden states are given, or a kernel refuses: one text at a time then.
        return False
    equal = all(_close(a, b, 1e-3 if exact else 5e-2) for a, b in zip(ours, expected, strict=True))
    return equal and _close(ours[1], moved[1], 1e-4 if exact else 1e-2)


def _tree_logits(model: PreTrainedModel, texts: Sequence[list[int]]) -> list[Tensor]:
    """Logits at the last tokens of each text, (TRIED, V), through a tree in packs of 4 tokens."""
    tree = PrefixTree(texts)
    logits = TreeLogits(model, tree)
    ends = [tree.rows(i, len(tree.texts[i]) - TRIED, len(tree.texts[i])) for i in tree.text_of]
    rows = [[row for part in reversed(places) for row in part] for places in ends]
    found: dict[int, Tensor] = {}
    for pack in tree.packs(4, 4096):
        wanted = np.asarray(sorted({row for places in rows for row in places if pack.begin <= row < pack.end}))
        if len(wanted):
            for part, chunk in logits.of(pack, wanted):
                found.update(zip(wanted[part].tolist(), chunk, strict=True))
        else:
            logits.skip(pack)
    return [torch.stack([found[row] for row in places]) for places in rows]


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by no more than a share of the largest value."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())
