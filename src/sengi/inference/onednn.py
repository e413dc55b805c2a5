"""Matrix products through oneDNN, which torch brings along and takes for bfloat16, but not for float32.

For float32 torch takes MKL, which leaves AVX-512 unused on processors that are not Intel's. On an AMD EPYC with
AVX-512 (one thread, the layers of SmolLM2-135M, 256 tokens) MKL took 1.28 times as long as oneDNN, and 1.7 times for
the output head. Both compute in float32; they add up in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

# oneDNN makes a kernel for every shape it meets and keeps about a thousand of them, 150 kB each. So it gets shapes
# that come again: full packs, and up to so many rows of the output head.
PACK_MULTIPLE, HEAD_ROWS = 128, 16


@contextmanager
def through_onednn(model: nn.Module) -> Iterator[None]:
    """Let the float32 linear layers of ``model`` that lie on a CPU compute with oneDNN until exit.

    No gradient flows through them meanwhile. Layers of other classes (quantized ones, for example), sharded weights,
    other types and other devices are left alone; all are where torch was built without oneDNN.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and _is_plain(module)]
    for layer in layers:
        layer.forward = partial(_linear, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(layer: nn.Linear) -> bool:
    if not torch.backends.mkldnn.is_available() or type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight = layer.weight.detach()
    in_float32 = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return type(weight) is Tensor and in_float32 and weight.is_contiguous()  # a sharded weight is of another class


def _linear(layer: nn.Linear, values: Tensor) -> Tensor:
    """(..., in) to (..., out)."""
    rows = values.numel() // layer.in_features
    comes_again = rows <= HEAD_ROWS or rows % PACK_MULTIPLE == 0
    if values.dtype != torch.float32 or not rows or not comes_again:
        return nn.functional.linear(values, layer.weight, layer.bias)
    # What torch.compile takes for the same layer; it has no public name and no gradient
    result: Tensor = torch.ops.mkldnn._linear_pointwise(values, layer.weight, layer.bias, "none", [], "")
    return result
