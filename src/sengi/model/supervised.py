"""A causal language model made ready for supervised fine-tuning: packs in, loss out.

What a model family does between hidden state and logits, and whether its layers keep packed documents apart,
also where these begin alike, is not taken on trust: :func:`prepare` tries it on two short documents before anything is
trained.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sengi.data.packs import Pack
from sengi.errors import ModelError
from sengi.model.attention import make_padding_free, undo_padding_free
from sengi.model.embedding import add_gradient_at_once
from sengi.model.head import LogitRule, supervised_loss


class SupervisedModel(nn.Module):
    """Wraps a transformers causal LM; ``forward`` is what training and held-out loss call.

    Attributes:
        lm: the transformers model; its weights are the trained weights.
        padding_free: all documents of a pack in one call; else one call a document (models whose layers carry
            state along the row, such as state-space layers).
        adds_at_once: whether :meth:`add_gradients_at_once` was called.
    """

    def __init__(self, lm: PreTrainedModel, padding_free: bool = True) -> None:
        super().__init__()
        self.lm = lm
        self.padding_free = padding_free
        self.adds_at_once = False
        self.rule = LogitRule.of(lm.config)

    def add_gradients_at_once(self) -> None:
        """Add the gradients of head and embedding where they belong instead of making some as large as the weights.

        For weights that have a gradient to add to, and in one process only: sharding collects gradients in the
        backward pass, which gives none of these two then.
        """
        self.adds_at_once = True
        add_gradient_at_once(self.lm.get_input_embeddings())

    def forward(self, pack: Pack, loss_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted loss of a pack.

        Args:
            pack: a micro-batch on the model's device.
            loss_weights: float32 (S,), one for each target.

        Returns:
            Scalar float32 ``sum(weight * nll)``, and the detached nll (S,) in nats.
        """
        hidden = self.hidden_states(pack)[pack.predict_at]
        head = self.lm.get_output_embeddings()
        # without gradients (held-out loss) nothing may be added
        into = head.weight.grad if self.adds_at_once and torch.is_grad_enabled() else None
        return supervised_loss(hidden, head, pack.targets, loss_weights, self.rule, into)

    def hidden_states(self, pack: Pack) -> Tensor:
        """Last hidden state of every token, (T, E)."""
        decoder = self.lm.get_decoder()
        if self.padding_free:
            output = decoder(
                input_ids=pack.input_ids,
                position_ids=pack.position_ids,
                use_cache=False,
                cu_seq_lens_q=pack.bounds,
                cu_seq_lens_k=pack.key_bounds,
                max_length_q=pack.longest,
                max_length_k=pack.longest,
                shared_tokens=pack.shared,
                shared_keys=pack.keys,
            )
            return output.last_hidden_state[0]
        bounds = pack.bounds.tolist()
        rows = [
            decoder(input_ids=pack.input_ids[:, a:b], use_cache=False).last_hidden_state[0]
            for a, b in itertools.pairwise(bounds)
        ]
        return torch.cat(rows)


def prepare(
    lm: PreTrainedModel,
    device: torch.device | None = None,
    autocast: torch.dtype | None = None,
    packs: bool = True,
) -> SupervisedModel:
    """Make ``lm`` padding-free where that is right for it, and check head and packing on a small input.

    Dropout is off (evaluation mode) in training, too: its noise would depend on how samples are packed.

    Args:
        lm: the model, as loaded.
        device: where it is moved to and tried; the CPU if None.
        autocast: dtype of the training's computation, whose attention kernel is tried for leaks, too.
        packs: False where the documents are so long that the model's positions depend on the longest of a call (rotary
            positions of kind longrope or dynamic): they go one by one then.

    Raises:
        ModelError: the loss of our head differs from the one of the model's own logits, or is not finite.
    """
    device = device or torch.device("cpu")
    lm = lm.eval().to(device)
    before = lm.config._attn_implementation
    probe = _probe_pack(lm.config.get_text_config().vocab_size).to(device)
    with torch.no_grad():
        expected = _reference_nll(lm, probe)
        if not torch.isfinite(expected).all():
            raise ModelError(f"{type(lm).__name__}: the loss of a short text is not finite; its weights are damaged")
        packed = _try_packed(lm, probe) if packs else None
        right = packed is not None and _close(packed[1], expected) and _close(*_lean_and_whole(packed[0], device))
        if packed is not None and right and not _leaks(packed[0], probe):
            if autocast is not None:
                with torch.autocast(device.type, autocast):
                    if _leaks(packed[0], probe):
                        raise ModelError(
                            f"{type(lm).__name__}: documents of a pack reach each other in {autocast} on {device}; "
                            "set dtype: float32 and report this"
                        )
            return packed[0]
        undo_padding_free(lm, before)
        one_by_one = SupervisedModel(lm, padding_free=False)
        ours = one_by_one(probe, torch.ones(len(probe.targets), device=device))[1]
    if not _close(ours, expected):
        raise ModelError(
            f"{type(lm).__name__}: its logits are not output_embeddings(last_hidden_state) with a known scale or cap "
            f"(largest difference {(ours - expected).abs().max():.2g}); this family is not supported yet"
        )
    return one_by_one


def _probe_pack(vocab_size: int) -> Pack:
    """Two documents of 5 and 7 tokens, every token after the first a target."""
    import numpy as np

    from sengi.conversation import Sample
    from sengi.data.packs import make_pack

    ids = (np.arange(12, dtype=np.int64) * 7919 + 11) % max(2, min(vocab_size, 30_000))
    pieces = (ids[:5].astype(np.int32), ids[5:].astype(np.int32))
    return make_pack([Sample(piece, np.ones(len(piece), np.uint8)) for piece in pieces])


def _reference_nll(lm: PreTrainedModel, pack: Pack) -> Tensor:
    """Each document alone through the model's own forward, as transformers computes it."""
    bounds = pack.bounds.tolist()
    parts = []
    for a, b in itertools.pairwise(bounds):
        ids = pack.input_ids[:, a:b]
        logits = lm(input_ids=ids, use_cache=False).logits[0, :-1].float()
        parts.append(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    return torch.cat(parts)


def _try_packed(lm: PreTrainedModel, pack: Pack) -> tuple[SupervisedModel, Tensor] | None:
    try:
        make_padding_free(lm)
        model = SupervisedModel(lm)
        return model, model(pack, torch.ones(len(pack.targets), device=pack.targets.device))[1]
    except (ValueError, TypeError, NotImplementedError):
        return None  # this family does not take an attention function: one document at a time then


def _lean_and_whole(model: SupervisedModel, device: torch.device) -> tuple[Tensor, Tensor]:
    """Losses of two documents that begin alike, in a lean pack and whole."""
    import numpy as np

    from sengi.conversation import Sample
    from sengi.data.packs import make_pack

    ids = (np.arange(9, dtype=np.int32) * 31 + 7) % max(2, min(model.lm.config.get_text_config().vocab_size, 30_000))
    mask = (np.arange(7) > 3).astype(np.uint8)
    samples = [Sample(ids[:7], mask), Sample(np.concatenate([ids[:3], ids[5:]]), mask)]
    lean, whole = (make_pack(samples, lean=flag).to(device) for flag in (True, False))
    assert lean.shared == 3
    first, second = (model(pack, torch.ones(len(pack.targets), device=device))[1] for pack in (lean, whole))
    return first, second


def _leaks(model: SupervisedModel, pack: Pack) -> bool:
    """Whether the first document reaches the others. The loss alone does not show it where layers forget fast.

    Rounding of another routing in mixture-of-experts layers is below 1e-6, a state-space layer leaks above 1e-3.
    """
    first = int(pack.bounds[1])
    ids = pack.input_ids.clone()
    ids[:, :first] = ids[:, -first:]
    before, after = (model.hidden_states(p)[first:] for p in (pack, replace(pack, input_ids=ids)))
    return bool((before - after).abs().max() > 1e-4 * before.abs().max())


def _close(ours: Tensor, expected: Tensor) -> bool:
    return bool(torch.allclose(ours, expected, rtol=1e-3, atol=2e-3))
