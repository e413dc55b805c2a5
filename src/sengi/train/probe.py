"""The gradient noise scale of a user's model and data, before anything is trained: ``sengi plan --probe K``.

K micro-batches of n samples each are the first K n samples of the training order, which is a random permutation: random
samples, without repetition, and not packs of similar lengths. Each gets a gradient of its own at the base model's
weights, by the run's code (adapter, packing, precision, activation checkpointing), and what is kept of it is a
random projection. Nothing is updated or written.

A projection of a gradient is SKETCH numbers: entry j of a parameter is multiplied by a random sign and added to number
(j mod SKETCH). It keeps inner products without bias, with an error of about the product of the norms over the root of
SKETCH (Charikar, Chen and Farach-Colton 2002; SKETCH is prime, so that rows of matrices do not fall onto each other).
That is less than the scatter of the gradients themselves, and it is part of the interval. So K gradients take the
memory of one. What is computed from them: sengi/statistics/gradient_noise.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sengi.data.packing import pack_step
from sengi.data.packs import make_pack
from sengi.errors import InputError
from sengi.statistics.gradient_noise import FEWEST, NoiseScale, noise_scale
from sengi.train.distributed import World
from sengi.train.out_of_memory import is_out_of_memory
from sengi.train.setup import Setup
from sengi.train.step import target_weights
from sengi.train.trainable import Trainable, load_trainable, make_ready

SKETCH = 65_521  # the largest prime below 2^16
BLOCK = 64  # times SKETCH values are projected at once: 17 MB
MOST_SAMPLES = 64  # of a micro-batch: more cost time and tell no more than more micro-batches would
SIGNS_SEED = 20_240_101  # signs are the same for all micro-batches, and every probe


def probe(
    setup: Setup, micro_batches: int, world: World, progress: Callable[[int, int], None] = lambda done, total: None
) -> NoiseScale:
    """Measure the gradient noise scale at the base model's weights.

    Args:
        setup: of the run.
        micro_batches: K.
        world: of one process.
        progress: called with the micro-batches done and K.

    Raises:
        InputError: too few micro-batches or samples, several processes, or memory that does not suffice.
    """
    if micro_batches < FEWEST:
        raise InputError(f"--probe is {micro_batches}, but an interval needs {FEWEST} micro-batches; raise it")
    if world.size > 1:
        raise InputError("--probe measures on one process; run 'sengi plan' without torchrun")
    each = samples_each(setup, micro_batches)
    base = load_trainable(setup)
    base.model.to(world.device)
    make_ready(base, setup, world.device)
    order = _first_samples(setup, each * micro_batches)
    groups = order.reshape(micro_batches, each)
    try:
        sums, weights = gradient_sketches(base, groups, setup, world.device, progress)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"--probe: no memory for a micro-batch of {setup.plan.max_tokens_per_device:,} tokens ({error}); lower "
            "max_tokens_per_device"
        ) from None
    return noise_scale(sums, weights, each)


def samples_each(setup: Setup, micro_batches: int) -> int:
    """Samples n of a micro-batch: as many as one of the run holds on average, at most MOST_SAMPLES.

    Raises:
        InputError: the first phase has not one for each micro-batch.
    """
    plan = setup.steps.phases[0].plan
    there = min(plan.epoch_size, plan.total_samples)
    if there < micro_batches:
        raise InputError(f"--probe is {micro_batches}, but there are {there:,} samples to draw from; lower it")
    fit = int(setup.plan.max_tokens_per_device / setup.store.lengths.mean())
    return max(1, min(fit, MOST_SAMPLES, there // micro_batches))


def _first_samples(setup: Setup, count: int) -> NDArray[np.int64]:
    """The first ``count`` samples of the training order, store indices."""
    parts, step = [np.empty(0, dtype=np.int64)], 0
    while sum(map(len, parts)) < count:
        step += 1
        parts.append(setup.steps.step_samples(step))
    return np.concatenate(parts)[:count]


def gradient_sketches(
    base: Trainable,
    groups: NDArray[np.int64],
    setup: Setup,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Projected gradient sums of groups of samples, and their weights.

    Args:
        base: the model and its computation.
        groups: store indices, shape (K, n).

    Returns:
        Shapes (K, m) and (K,); m is SKETCH, or the number of trained parameters where that is smaller and the
        gradients are kept whole. The weight is in supervised tokens or samples, as ``loss_reduction`` says, relative
        to the mean, and so are the sums.
    """
    model, autocast, store, reduction = base.model, base.autocast, setup.store, setup.resolved.recipe.loss_reduction
    trained = [p for p in model.parameters() if p.requires_grad]
    mean_targets = max(1, round(float(store.supervised[groups].sum()) / len(groups)))
    sketches, weights = [], []
    for number, group in enumerate(groups):
        progress(number, len(groups))
        model.zero_grad(set_to_none=True)
        weight = 0.0
        for members in pack_step(store.lengths[group], setup.plan.max_tokens_per_device).ranks[0]:
            pack = make_pack(store.samples(group[members]), lean=model.padding_free)
            share = target_weights(pack, reduction, mean_targets, len(group))
            weight += float(share.double().sum())
            with torch.autocast(device.type, autocast) if autocast is not None else contextlib.nullcontext():
                loss, _ = model(pack.to(device), share.to(device))
            loss.backward()
        sketches.append(sketch([torch.zeros_like(p) if p.grad is None else p.grad for p in trained]))
        weights.append(weight)
    model.zero_grad(set_to_none=True)
    progress(len(groups), len(groups))
    return np.stack(sketches), np.asarray(weights)


@torch.no_grad()
def sketch(gradients: Sequence[Tensor], size: int = SKETCH) -> NDArray[np.float32]:
    """A projection that keeps inner products, float32 (m,): m is ``size``, or their number of values if smaller."""
    flat = [gradient.reshape(-1) for gradient in gradients]
    if sum(map(len, flat)) <= size:
        return np.asarray(torch.cat(flat).float().cpu().numpy(), dtype=np.float32)
    device = flat[0].device
    total, generator = torch.zeros(size, device=device), torch.Generator(device).manual_seed(SIGNS_SEED)
    for part in (part for values in flat for part in values.split(BLOCK * size)):
        signs = torch.randint(0, 2, part.shape, generator=generator, device=device, dtype=torch.int8)
        signed = part.float() * signs.mul_(2).sub_(1)
        total += nn.functional.pad(signed, (0, -len(signed) % size)).view(-1, size).sum(dim=0)
    return np.asarray(total.cpu().numpy(), dtype=np.float32)
