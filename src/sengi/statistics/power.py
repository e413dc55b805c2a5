"""What difference a comparison could have found: the question to ask before believing "no difference"."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sengi.statistics.intervals import normal_quantile

TAIL = 1e-9  # counts of changed questions rarer than this are left out of the sum


def minimal_detectable_difference(
    n: int, *, discordant: float | None = None, sd: float | None = None, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest true difference that a paired test of n questions finds with probability ``power``.

    Args:
        n: questions, at least 1.
        discordant: for 0/1 results: share of the questions whose result differs between the two. The power is that
            of McNemar's exact test, summed over how many questions may change.
        sd: for other results: standard deviation of the differences, in their unit (normal approximation). Give this
            or ``discordant``.
        power: between 0 and 1.
        alpha: level of the two-sided test, between 0 and 1.

    Returns:
        The difference, as a share or in the unit of ``sd``; NaN where even the largest that fits (every change in
        one direction) would not be found that often, and where nothing differs, which tells no spread.

    Raises:
        ValueError: both or none of ``discordant`` and ``sd``, or a number out of range.
    """
    if (discordant is None) == (sd is None):
        raise ValueError("give one of discordant (0/1 results) and sd (other results)")
    if n < 1:
        raise ValueError(f"n={n}: need at least 1 question")
    if not 0 < power < 1 or not 0 < alpha < 1:
        raise ValueError(f"power={power}, alpha={alpha}: need numbers between 0 and 1")
    if sd is not None:
        if not 0 <= sd < math.inf:
            raise ValueError(f"sd={sd}: need 0 or more")
        # 2 power - 1 of a normal distribution lie between -z and z when ``power`` of it lies below z
        reach = normal_quantile(1 - alpha) + math.copysign(normal_quantile(abs(2 * power - 1) or 1e-12), power - 0.5)
        return reach * sd / math.sqrt(n) if sd else math.nan
    assert discordant is not None
    if not 0 <= discordant <= 1:
        raise ValueError(f"discordant={discordant}: need a share from 0 to 1")
    return _smallest_share(n, discordant, power, alpha) if discordant else math.nan


def _smallest_share(n: int, discordant: float, power: float, alpha: float) -> float:
    """By bisection: power grows with the difference, which cannot pass the share of changed questions."""
    from scipy.stats import binom

    changed = np.arange(binom.ppf(TAIL, n, discordant), binom.ppf(1 - TAIL, n, discordant) + 1)
    chance = binom.pmf(changed, n, discordant)
    limit = binom.ppf(alpha / 2, changed, 0.5)
    limit -= binom.cdf(limit, changed, 0.5) > alpha / 2  # most losses at which the test rejects; -1: none

    def power_of(difference: float) -> float:
        return _mcnemar_power(changed, chance, limit, difference / discordant)

    low, high = 0.0, discordant
    if power_of(high) < power:
        return math.nan
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(middle) >= power else (middle, high)
    return high


def _mcnemar_power(
    changed: NDArray[np.float64], chance: NDArray[np.float64], limit: NDArray[np.float64], lean: float
) -> float:
    """Chance that the exact test rejects when a changed question is lost with probability (1 - lean) / 2."""
    from scipy.stats import binom

    losing = (1 - lean) / 2
    rejects = binom.cdf(limit, changed, losing) + binom.sf(changed - limit - 1, changed, losing)
    return float((chance * rejects).sum())
