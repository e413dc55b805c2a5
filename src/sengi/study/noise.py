"""How much of a step's squared gradient norm is noise: what makes norms of different batch sizes comparable.

The gradient of a batch is g_B = G + noise, so E|g_B|^2 = |G|^2 + tr(S)/B (McCandlish et al. 2018, arXiv 1812.06162,
appendix A.1, B_big and B_small there): a larger batch has a lower norm at the same weights. Two norms of the *same*
step tell the parts apart. ``run_step`` measures the whole step's gradient g and that of its first half of
micro-batches, h. Every supervised token weighs the same in a step, and micro-batches hold different numbers of them,
so h is the mean over its own tokens and the size that counts is its share f of the step's weight (tokens, or samples
where ``loss_reduction: sample``):

    E|g|^2 = |G|^2 + V        V = tr(S)/B, the noise of this step's gradient
    E|h|^2 = |G|^2 + V / f

both exact if noise falls as one over the tokens. Tokens of a conversation are not independent, but halves of many
conversations each keep the ratio of tokens to independent parts, so that f holds up to how unevenly long ones fall.
Hence the unbiased estimates below. They may be negative by chance in one step: average before use, never clip before.

What biases them: the halves are packs, not random samples. Best fit puts long conversations into early packs; where
long and short conversations pull in different directions, that difference counts as noise and V comes out too large
(the corrected norm too low), for small and large batches alike.
"""

from __future__ import annotations

import math


def noise_part(grad_norm: float, half_grad_norm: float | None, half_share: float | None) -> float:
    """V, the part of ``grad_norm ** 2`` that is noise, in its unit; NaN where it was not measured.

    Args:
        grad_norm: norm of the step's gradient before clipping.
        half_grad_norm: norm of the mean gradient of the step's first micro-batches; None with one micro-batch a step.
        half_share: their share of the step's weight, above 0 and below 1.
    """
    if half_grad_norm is None or half_share is None or not 0 < half_share < 1:
        return math.nan
    return (half_grad_norm**2 - grad_norm**2) / (1 / half_share - 1)
