"""A causal language model made ready for supervised fine-tuning: packs in, loss out.

What a model family does between hidden state and logits, and whether its layers keep packed documents apart,
also where these begin alike, is not taken on trust: :func:`prepare` tries it on two short documents as the model was
loaded, and :func:`try_on_device` once more where and as it will be trained.
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
        probe_nll: losses of the probe's targets in nats, on the CPU, as the model was loaded; :func:`prepare` sets it.
    """

    def __init__(self, lm: PreTrainedModel, padding_free: bool = True) -> None:
        super().__init__()
        self.lm = lm
        self.padding_free = padding_free
        self.adds_at_once = False
        self.probe_nll: Tensor | None = None
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


def prepare(lm: PreTrainedModel, packs: bool = True) -> SupervisedModel:
    """Make ``lm`` padding-free where that is right for it, and check head and packing on a small input.

    Dropout is off (evaluation mode) in training, too: its noise would depend on how samples are packed.

    Args:
        lm: the model, as loaded; it is tried where it lies.
        packs: False where the documents are so long that the model's positions depend on the longest of a call (rotary
            positions of kind longrope or dynamic): they go one by one then.

    Raises:
        ModelError: the loss of our head differs from the one of the model's own logits, or is not finite.
    """
    lm = lm.eval()
    before = lm.config._attn_implementation
    probe = _probe_pack(lm)
    with torch.no_grad():
        expected = _reference_nll(lm, probe)
        if not torch.isfinite(expected).all():
            raise ModelError(f"{type(lm).__name__}: the loss of a short text is not finite; its weights are damaged")
        model = _try_packed(lm, probe, expected) if packs else None
        if model is None:
            undo_padding_free(lm, before)
            model = SupervisedModel(lm, padding_free=False)
            ours = _losses(model, probe)
            if not _close(ours, expected):
                raise ModelError(
                    f"{type(lm).__name__}: its logits are not output_embeddings(last_hidden_state) with a known scale "
                    f"or cap (largest difference {(ours - expected).abs().max():.2g}); this family is not supported yet"
                )
    model.probe_nll = expected.cpu()
    return model


def try_on_device(model: SupervisedModel, device: torch.device, autocast: torch.dtype | None = None) -> None:
    """Try a prepared model where and as it will be trained: its losses are still the same, its documents still apart.

    Processes that share its weights call this together; some weights may be left whole.

    Args:
        model: of :func:`prepare`, moved to its device or sharded since.
        device: where its weights lie now.
        autocast: dtype of the computation, None for float32.

    Raises:
        ModelError: a kernel of this device computes something else.
    """
    assert model.probe_nll is not None
    probe, kind = _probe_pack(model.lm).to(device), autocast or torch.float32
    cure = "set dtype: float32 and report this" if autocast is not None else "report this"
    with torch.no_grad(), torch.autocast(device.type, autocast, enabled=autocast is not None):
        ours = _losses(model, probe).cpu()
        if not (_near if autocast is not None else _close)(ours, model.probe_nll):
            raise ModelError(
                f"{type(model.lm).__name__}: its losses on {device} in {kind} are not those of the model as it was "
                f"loaded (largest difference {(ours - model.probe_nll).abs().max():.2g} nats); {cure}"
            )
        if model.padding_free and _leaks(model, probe):
            raise ModelError(
                f"{type(model.lm).__name__}: documents of a pack reach each other in {kind} on {device}; {cure}"
            )


def _probe_pack(lm: PreTrainedModel) -> Pack:
    """Two documents of 5 and 7 tokens, every token after the first a target; on the device of ``lm``."""
    import numpy as np

    from sengi.conversation import Sample
    from sengi.data.packs import make_pack

    ids = (np.arange(12, dtype=np.int64) * 7919 + 11) % _numbers(lm)
    pieces = (ids[:5].astype(np.int32), ids[5:].astype(np.int32))
    return make_pack([Sample(piece, np.ones(len(piece), np.uint8)) for piece in pieces]).to(lm.device)


def _numbers(lm: PreTrainedModel) -> int:
    """How many token ids the probes may use."""
    return max(2, min(lm.config.get_text_config().vocab_size, 30_000))


def _losses(model: SupervisedModel, pack: Pack) -> Tensor:
    return model(pack, torch.ones(len(pack.targets), device=pack.targets.device))[1]


def _reference_nll(lm: PreTrainedModel, pack: Pack) -> Tensor:
    """Each document alone through the model's own forward, as transformers computes it."""
    bounds = pack.bounds.tolist()
    parts = []
    for a, b in itertools.pairwise(bounds):
        ids = pack.input_ids[:, a:b]
        logits = lm(input_ids=ids, use_cache=False).logits[0, :-1].float()
        parts.append(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    return torch.cat(parts)


def _try_packed(lm: PreTrainedModel, pack: Pack, expected: Tensor) -> SupervisedModel | None:
    """The padding-free model, or None where that is not right for this family: one document at a time then."""
    try:
        make_padding_free(lm)
        model = SupervisedModel(lm)
        ours = _losses(model, pack)
    except (ValueError, TypeError, NotImplementedError):  # it does not take an attention function
        return None
    right = _close(ours, expected) and _close(*_lean_and_whole(model))
    return model if right and not _leaks(model, pack) else None


def _lean_and_whole(model: SupervisedModel) -> tuple[Tensor, Tensor]:
    """Losses of two documents that begin alike, in a lean pack and whole."""
    import numpy as np

    from sengi.conversation import Sample
    from sengi.data.packs import make_pack

    ids = (np.arange(9, dtype=np.int32) * 31 + 7) % _numbers(model.lm)
    mask = (np.arange(7) > 3).astype(np.uint8)
    samples = [Sample(ids[:7], mask), Sample(np.concatenate([ids[:3], ids[5:]]), mask)]
    lean, whole = (make_pack(samples, lean=flag).to(model.lm.device) for flag in (True, False))
    assert lean.shared == 3
    return _losses(model, lean), _losses(model, whole)


def _leaks(model: SupervisedModel, pack: Pack) -> bool:
    """Whether the first document reaches the others. The loss alone does not show it where layers forget fast.

    Rounding of another routing in mixture-of-experts layers is below 1e-6, a state-space layer leaks above 1e-3.
    """
    first = int(pack.bounds[1])
    ids = pack.input_ids.clone()
    ids[:, :first] = ids[:, -first:]
    states: list[Tensor] = []  # caught in a whole forward pass: sharded weights come together in no other
    hook = model.lm.get_decoder().register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state[0]))
    try:
        for tried in (pack, replace(pack, input_ids=ids)):
            _losses(model, tried)
    finally:
        hook.remove()
    before, after = (state[first:] for state in states)
    return bool((before - after).abs().max() > 1e-4 * before.abs().max())


def _close(ours: Tensor, expected: Tensor) -> bool:
    return bool(torch.allclose(ours, expected, rtol=1e-3, atol=2e-3))


def _near(ours: Tensor, expected: Tensor) -> bool:
    """As close as half precision is: single losses differ by a tenth, all together by far less than a twentieth."""
    return bool((ours - expected).abs().mean() <= 0.05 + 0.05 * expected.mean())
