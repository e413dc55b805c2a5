"""Cross-entropy on supervised tokens only, in chunks: the logits of a pack never exist as a whole.

Shapes: S supervised targets of a pack, E hidden size, V vocabulary.

The gradient is formed in the forward pass, chunk by chunk, while the logits are at hand; nothing of size S x V
is kept and nothing is computed twice. A chunk's logits turn into their gradient in place, on a CPU as many rows at a
time as its cache holds. Weight gradients are summed in float32: summing them in bfloat16 biases training within dozens
of steps (noted in TRL's source for its fused head).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

CHUNK = 1024  # targets at a time; smaller chunks cost time, larger ones memory (measured)
WORDS = 8192  # rows of the weight whose gradient is added at a time
BLOCK = 2**19  # logits at a time between the matrix products on a CPU: 2 MB, which two cores' own caches hold


@dataclass(frozen=True)
class LogitRule:
    """What a model family does to logits after the matrix product: ``cap * tanh(scale * logits / cap)``."""

    scale: float = 1.0
    cap: float | None = None

    @staticmethod
    def of(config: Any) -> LogitRule:
        """The rule of a transformers config (Granite's, Cohere's and Gemma's keys)."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        scale = float(getattr(text, "logit_scale", None) or 1.0)
        if getattr(text, "logits_scaling", None):
            scale /= float(text.logits_scaling)
        cap = getattr(text, "final_logit_softcapping", None)
        return LogitRule(scale, float(cap) if cap else None)

    def apply_(self, logits: Tensor) -> Tensor:
        """Turn logits into those after the rule, in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits.div_(self.cap).tanh_().mul_(self.cap) if self.cap else logits

    def backward_(self, grad: Tensor, logits: Tensor) -> Tensor:
        """Turn the gradient after the rule into the one before it, in place; ``logits`` are those after it."""
        if self.cap:
            grad.mul_(1 - (logits / self.cap) ** 2)
        return grad.mul_(self.scale) if self.scale != 1.0 else grad


def _softmax_(scores: Tensor, wanted: Tensor) -> Tensor:
    """Turn logits (N, V) into probabilities in place; the negative log-likelihoods (N,) of ``wanted`` (N, 1)."""
    top, at_target = scores.amax(dim=1, keepdim=True), scores.gather(1, wanted)
    total = scores.sub_(top).exp_().sum(dim=1, keepdim=True)
    scores.div_(total)
    return (total.log_() + top - at_target)[:, 0]


def _sums_in_float32(factor: Tensor) -> bool:
    """Whether a product of this half-precision matrix can be added to float32 numbers by the product itself.

    NVIDIA's products can from Ampere on: nothing is rounded to half precision on the way, and no product as large as
    the head is made beside its gradient. The memory forecast traces the other way: this one takes a device.
    """
    if not factor.is_cuda or factor.dtype not in (torch.bfloat16, torch.float16) or isinstance(factor, FakeTensor):
        return False
    if torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(factor.device) >= (8, 0)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        loss_weights: Tensor,
        rule: LogitRule,
        dtype: torch.dtype,
        into: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        need_hidden, need_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        need_bias = bias is not None and ctx.needs_input_grad[2]
        matrix = weight.to(dtype)
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if need_bias and bias is not None else None
        scratch: Tensor | None = None  # one for all blocks: fresh memory comes page by page, which takes longer
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            rows = hidden[part].to(dtype)
            logits = rows @ matrix.t()
            step = len(logits) if logits.is_cuda else max(1, BLOCK // logits.shape[1])
            if scratch is None and logits.dtype != torch.float32:
                scratch = torch.empty(min(step, len(logits)), logits.shape[1], dtype=nll.dtype, device=nll.device)
            blocks = (x.split(step) for x in (logits, targets[part, None], loss_weights[part, None], nll[part]))
            for block, wanted, weights, losses in zip(*blocks, strict=True):
                scores = block if scratch is None else scratch[: len(block)].copy_(block)
                if bias is not None:
                    scores += bias.float()
                rule.apply_(scores)
                capped = scores.clone() if rule.cap and (need_hidden or need_weight) else scores
                losses.copy_(_softmax_(scores, wanted))
                if not (need_hidden or need_weight):
                    continue
                scores.mul_(weights).scatter_add_(1, wanted, -weights)
                rule.backward_(scores, capped)
                if grad_bias is not None:
                    grad_bias += scores.sum(dim=0)
                if scratch is not None:
                    block.copy_(scores)
            if grad_hidden is not None:
                grad_hidden[part] = logits @ matrix
            if need_weight and into is not None:
                for of_words, some in zip(logits.t().split(WORDS), into.split(WORDS), strict=True):
                    some += of_words @ rows
            elif need_weight and _sums_in_float32(logits):
                grad_weight = torch.zeros_like(weight, dtype=torch.float32) if grad_weight is None else grad_weight
                torch.addmm(grad_weight, logits.t(), rows, out_dtype=torch.float32, out=grad_weight)
            elif need_weight and grad_weight is None:
                grad_weight = (logits.t() @ rows).float()
            elif grad_weight is not None and dtype == grad_weight.dtype:
                grad_weight.addmm_(logits.t(), rows)  # in place: a product of its own is as large as the head
            elif grad_weight is not None:
                grad_weight += logits.t() @ rows
        if need_weight and into is None and grad_weight is None:  # no targets at all
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(nll)
        return (nll * loss_weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        scaled = [None if g is None else g.mul_(grads[0]) for g in ctx.saved_tensors]
        if scaled[1] is not None:
            scaled[1] = scaled[1].to(ctx.weight_dtype)
        return (*scaled, None, None, None, None, None)


def supervised_loss(
    hidden: Tensor,
    head: nn.Linear,
    targets: Tensor,
    loss_weights: Tensor,
    rule: LogitRule,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of supervised targets.

    Args:
        hidden: (S, E), the last hidden state at the position before each target.
        head: the output embedding, weight (V, E).
        targets: int64 (S,).
        loss_weights: float32 (S,); the loss is ``sum(weight * nll)``.
        rule: the family's logit rule.
        into: float32 (V, E) where the weight's gradient is added at once, for a loss that is the end of the graph: a
            gradient of its own is as large again, and fresh memory of that size costs more time than the product. The
            backward pass then gives none.

    Returns:
        The scalar float32 loss and the float32 (S,) negative log-likelihoods, detached, in nats.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    result: tuple[Tensor, Tensor] = _ChunkedCrossEntropy.apply(
        hidden, head.weight, head.bias, targets, loss_weights, rule, dtype, into
    )
    return result
