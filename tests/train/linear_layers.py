"""Linear layers where a training has its language model."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn


class LinearLayers(nn.Module):
    """Biased layers one after another, with the file layout of no family.

    Args:
        sizes: of the input, and of the output of each layer.
    """

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        layers = (nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.lm: Any = nn.Sequential(*layers)
        self.lm._weight_conversions, self.lm.config = [], None  # of its family's files: as they are

    def forward(self, x: torch.Tensor) -> Any:
        return self.lm(x)
