"""The noise scale: right where gradient and covariance are known, and its interval covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.data.packing import pack_step
from sengi.statistics.gradient_noise import FEWEST, NoiseScale, noise_part, noise_scale

SIZE = 120  # parameters
FEW = settings(max_examples=15, deadline=None)


def direction(rng: np.random.Generator) -> np.ndarray:
    gradient = rng.standard_normal(SIZE)
    return gradient / np.linalg.norm(gradient)


def spectrum(decay: float, trace: float) -> np.ndarray:
    """Variances of one sample's gradient, the k-th falling as k ** -decay."""
    values = np.arange(1, SIZE + 1) ** -decay
    return trace * values / values.sum()


def measured(rng: np.random.Generator, trace: float, decay: float, count: int, each: int) -> NoiseScale:
    """K micro-batches of a quadratic whose gradient has norm 1 and whose samples' covariance has this trace."""
    sums = each * direction(rng) + rng.standard_normal((count, SIZE)) * np.sqrt(each * spectrum(decay, trace))
    return noise_scale(sums, np.full(count, float(each)), each)


@pytest.mark.parametrize(
    ("trace", "count", "low"), [(4.0, 16, 0.92), (40.0, 16, 0.93), (40.0, 32, 0.93), (400.0, 16, 0.95)]
)
def test_estimate_and_interval_on_a_quadratic(trace: float, count: int, low: float) -> None:
    # of 400 intervals of 95%, 93% to 97% hold the truth where the signal shows (standard error 1.1%), and up to all of
    # them where it drowns, which is the safe side
    rng = np.random.default_rng(int(trace) + count)
    runs = [measured(rng, trace, 0.7, count, 8) for _ in range(400)]
    covered = np.mean([run.low <= trace <= run.high for run in runs])
    assert covered >= low
    if trace == 4.0:
        assert covered <= 0.98
    noise, signal = (np.array([getattr(run, key) for run in runs]) for key in ("noise", "signal"))
    for values, truth in ((noise, trace), (signal, 1.0)):
        assert values.mean() == pytest.approx(truth, abs=5 * values.std() / 20)


def test_conversations_of_different_lengths_weigh_by_their_tokens() -> None:
    # sample j has w tokens, the sum w G + sqrt(w) z: by the ratio's linearisation tr(S) = E[w] s / E[w]^2
    rng = np.random.default_rng(0)
    variances, lengths = spectrum(0.5, 900.0), np.array([1.0, 5.0, 60.0])
    truth, runs = 900.0 / lengths.mean(), []
    for _ in range(300):
        gradient, tokens = direction(rng), rng.choice(lengths, (24, 6))
        noise = rng.standard_normal((24, 6, SIZE)) * np.sqrt(tokens[:, :, None] * variances)
        sums = (tokens[:, :, None] * gradient + noise).sum(axis=1)
        runs.append(noise_scale(sums, tokens.sum(axis=1), 6))
    assert np.median([run.noise for run in runs]) == pytest.approx(truth, rel=0.06)
    assert np.mean([run.low <= truth <= run.high for run in runs]) >= 0.92


@FEW
@given(st.integers(0, 10_000), st.sampled_from([2.0, 20.0]))
def test_micro_batches_of_other_sizes_agree(seed: int, trace: float) -> None:
    # the same 512 samples, in micro-batches of 4 and of 16
    rng = np.random.default_rng(seed)
    samples = direction(rng) + rng.standard_normal((512, SIZE)) * np.sqrt(spectrum(0.5, trace))
    small, large = (
        noise_scale(samples.reshape(-1, n, SIZE).sum(axis=1), np.full(512 // n, float(n)), n) for n in (4, 16)
    )
    assert small.critical_batch == pytest.approx(large.critical_batch, rel=0.4)
    assert max(small.low, large.low) <= min(small.high, large.high)


@FEW
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_order_scale_and_rotation_do_not_matter(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    sums, weights = rng.standard_normal((10, 12)) + 0.5, rng.integers(1, 9, 10).astype(float)
    base = noise_scale(sums, weights, 4)
    order, turned = rng.permutation(10), np.linalg.qr(rng.standard_normal((12, 12)))[0]
    for other in (
        noise_scale(sums[order], weights[order], 4),
        noise_scale(sums * scale, weights, 4),
        noise_scale(sums, weights * scale, 4),
        noise_scale(sums @ turned, weights, 4),
    ):
        assert other.critical_batch == pytest.approx(base.critical_batch, rel=1e-6)
        assert other.low == pytest.approx(base.low, rel=1e-6)
    assert base.low <= base.critical_batch <= base.high


def test_equal_gradients_have_no_noise_and_noise_alone_no_upper_end() -> None:
    alike = noise_scale(np.ones((FEWEST, 3)), np.ones(FEWEST), 4)
    assert (alike.critical_batch, alike.low, alike.high) == (0.0, 0.0, 0.0)
    opposed = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]] * 3)
    drowned = noise_scale(opposed, np.ones(12), 4)
    assert math.isinf(drowned.critical_batch)
    assert math.isinf(drowned.high)


@pytest.mark.parametrize(
    ("gradients", "weights"),
    [
        (np.ones((FEWEST - 1, 2)), np.ones(FEWEST - 1)),
        (np.ones((FEWEST, 2)), np.ones(FEWEST + 1)),
        (np.ones((FEWEST, 2)), np.zeros(FEWEST)),
        (np.full((FEWEST, 2), np.nan), np.ones(FEWEST)),
    ],
)
def test_what_cannot_be_estimated_is_refused(gradients: np.ndarray, weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match="need 8 or more"):
        noise_scale(gradients, weights, 4)


def test_packs_of_random_halves_tell_noise_where_long_and_short_conversations_differ() -> None:
    # samples whose gradient depends on their length: signal 1, and noise that is known
    rng, squares = np.random.default_rng(0), {True: [], False: []}
    pulls = {20: np.array([1.0, 1.5]), 60: np.array([1.0, -1.5])}
    for _ in range(2_000):
        lengths = rng.choice([20, 60], 16)
        gradients = np.stack([pulls[int(length)] for length in lengths]) + rng.normal(0, 0.5, (16, 2))
        for halves in squares:
            packs = pack_step(lengths, 300, halves=halves)
            first = np.concatenate(packs.ranks[0][: packs.half or len(packs.ranks[0]) // 2])
            norms = [float(np.linalg.norm(part.mean(axis=0))) for part in (gradients, gradients[first])]
            squares[halves].append(norms[0] ** 2 - noise_part(*norms, len(first) / 16))
    assert np.mean(squares[True]) == pytest.approx(1.0, abs=0.03)
    assert np.mean(squares[False]) < 0.7  # packs of the whole step: long ones come first, and that looks like noise
