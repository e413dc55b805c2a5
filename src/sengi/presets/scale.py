"""The paper's sizes on a smaller data set: what counts samples shrinks with the data, what counts steps stays.

The paper's stacked set has 825,487 samples, which is 215 optimizer steps an epoch at 3,840 samples a step. A batch of
``3840 x n / 825487`` takes as many steps an epoch over n samples; so warm-up in steps means the same share of an epoch
and needs no scaling, and checkpoints and evaluations ``250000 x n / 825487`` samples apart come as often.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from sengi.errors import RecipeError

PAPER_SAMPLES = 825_487  # arXiv 2412.13337: 308,343 + 231,178 + 285,966, its three phases stacked
SIZES = ("effective_batch_size", "save_samples", "eval_samples")  # recipe keys that count samples
NOTABLE = 0.05  # share by which rounding may move the steps of an epoch before it is said


@dataclass(frozen=True)
class ScaledSize:
    """One size of the paper, here.

    Attributes:
        key: of the recipe.
        paper: samples in the paper; ``here`` samples here.
        samples: of an epoch of the data here.
    """

    key: str
    paper: int
    here: int
    samples: int

    @property
    def times(self) -> tuple[float, float]:
        """How often an epoch holds it: in the paper, here."""
        return PAPER_SAMPLES / self.paper, self.samples / self.here

    @property
    def arithmetic(self) -> str:
        """How it was made, as a comment in a recipe."""
        return f"{self.paper:,} x {self.samples:,} / {PAPER_SAMPLES:,} samples"

    @property
    def note(self) -> str:
        """What rounding did, where it matters; else empty."""
        paper, here = self.times
        if abs(here / paper - 1) <= NOTABLE:
            return ""
        exact = self.paper * self.samples / PAPER_SAMPLES
        return f"rounded from {exact:.2f}: {here:,.1f} times an epoch, not {paper:,.1f}"


def scale_size(paper: int, samples: int) -> int:
    """``paper x samples / 825,487``, rounded, at least 1.

    Args:
        paper: a size of the paper, in samples.
        samples: of an epoch of the data here.
    """
    return max(1, (2 * paper * samples + PAPER_SAMPLES) // (2 * PAPER_SAMPLES))


def scaled(key: str, paper: int, samples: int) -> ScaledSize:
    """One size of the paper for data of ``samples`` samples an epoch."""
    return ScaledSize(key, paper, scale_size(paper, samples), samples)


def scaled_apart(key: str, papers: Sequence[int], samples: int) -> list[ScaledSize]:
    """Several sizes of the paper that are to be compared.

    Raises:
        RecipeError: two of them become one.
    """

    def distinct(count: int) -> bool:
        return len({scale_size(paper, count) for paper in papers}) == len(set(papers))

    if distinct(samples):
        return [scaled(key, paper, samples) for paper in papers]
    sizes = ", ".join(f"{paper:,} -> {scale_size(paper, samples)}" for paper in papers)
    enough = next(count for count in itertools.count(samples) if distinct(count))
    raise RecipeError(
        f"--scale: {samples:,} samples are too few to keep the paper's sizes of {key} apart ({sizes}); add data "
        f"({enough:,} samples would do), or write a space of your own without --scale"
    )
