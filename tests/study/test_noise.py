"""Noise of gradients: on a quadratic whose gradient and noise are known, corrected norms agree, raw ones do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sengi.statistics.gradient_noise import noise_part
from sengi.study.judge import JudgeSettings, judge
from sengi.study.signals import History

SIZE = 60  # parameters of the quadratic
DEEP = settings(max_examples=8, deadline=None)


def measured_step(
    rng: np.random.Generator, gradient: np.ndarray, deviation: float, batch: int, lengths: np.ndarray | None = None
) -> tuple[float, float, float]:
    """One step of |x|^2 / 2 at x = gradient: norm, norm of the first half, its share. Tokens weigh the same."""
    tokens = np.ones(batch) if lengths is None else rng.choice(lengths, batch).astype(float)
    # the mean over a sample's tokens scatters by one over their root: every token is a draw of its own
    samples = gradient + deviation * rng.standard_normal((batch, SIZE)) / np.sqrt(tokens)[:, None]
    cut = max(1, batch // 2)
    half = np.average(samples[:cut], axis=0, weights=tokens[:cut])
    whole = np.average(samples, axis=0, weights=tokens)
    return float(np.linalg.norm(whole)), float(np.linalg.norm(half)), float(tokens[:cut].sum() / tokens.sum())


@DEEP
@given(st.floats(0.1, 3), st.floats(0.1, 3), st.integers(0, 1000), st.sampled_from([None, (1, 4, 30)]))
def test_corrected_norms_agree_across_batch_sizes_where_raw_ones_do_not(
    norm: float, deviation: float, seed: int, lengths: tuple[int, ...] | None
) -> None:
    rng = np.random.default_rng(seed)
    gradient = np.full(SIZE, norm / math.sqrt(SIZE))
    choice = None if lengths is None else np.array(lengths)
    for batch in (4, 16, 48):
        steps = [measured_step(rng, gradient, deviation, batch, choice) for _ in range(400)]
        noise = np.array([noise_part(*step) for step in steps])
        squares = np.array([whole**2 for whole, _, _ in steps])
        error = (squares - noise).std() / math.sqrt(len(steps))
        assert (squares - noise).mean() == pytest.approx(norm**2, abs=5 * error)
        if lengths is None:  # and the noise itself is tr(S) / B
            assert noise.mean() == pytest.approx(SIZE * deviation**2 / batch, abs=5 * noise.std() / math.sqrt(400))
            assert squares.mean() - norm**2 > 0.5 * SIZE * deviation**2 / batch


def test_the_judge_sees_equal_gradients_as_equal_whatever_the_batch() -> None:
    # six runs at the same weights: raw norms spread by a factor of two, corrected ones by a few percent
    rng = np.random.default_rng(0)
    gradient = np.full(SIZE, 1 / math.sqrt(SIZE))
    runs = []
    for number in range(6):
        batch = (8, 32, 128)[number % 3]
        seen = np.arange(batch, 12_801, batch)
        steps = [measured_step(rng, gradient, 1.0, batch) for _ in seen]
        fall = np.linspace(0, 1 + 0.02 * number, len(seen))
        runs.append(
            History(
                f"run-{number:02}",
                str(number),
                batch,
                0,
                tuple(seen.tolist()),
                tuple((3 - fall).tolist()),
                tuple(whole for whole, _, _ in steps),
                tuple(noise_part(*step) for step in steps),
            )
        )
    settings = JudgeSettings(check_samples=3200, early_samples=12_800, mode="terminate", window=0.5)
    verdicts = [v for v in judge(runs, settings) if v.check == 12_800]
    raw, corrected = (np.log([getattr(v, key) for v in verdicts]) for key in ("grad_norm", "corrected_norm"))
    assert np.ptp(raw) > math.log(2)
    assert np.ptp(corrected) < 0.25
    assert not [v for v in judge(runs, settings) if v.state == "stop"]


@pytest.mark.parametrize(("half", "share"), [(None, None), (1.0, None), (None, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_what_was_not_measured_is_missing(half: float | None, share: float | None) -> None:
    assert math.isnan(noise_part(1.0, half, share))
