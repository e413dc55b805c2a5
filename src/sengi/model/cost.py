"""What a model costs: floating-point operations, memory, and how fast this device can be at best.

FLOPs of training one pack (forward once, backward twice that; recomputation not counted):

    6 * tokens * (parameters of the layers' matrices)
  + 6 * supervised targets * (parameters of the head)        positions without a target skip the head
  + 6 * layers * heads * head_dim * sum of squared document lengths    causal: half of each square
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

# Dense bfloat16 peaks without sparsity, FLOP/s, from NVIDIA's data sheets
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "B200": 2250e12}


@dataclass(frozen=True)
class ModelCost:
    """Sizes that decide cost.

    Attributes:
        parameters: all parameters, tied ones once.
        linear: parameters in the matrices of the layers, without embedding and head.
        head: parameters of the output embedding.
        squared: FLOPs (training) for each squared token of a document.
        context: tokens the model was made for (``max_position_embeddings``), or None.
        activation_bytes: rough bytes that the backward pass keeps for each token, in float32.
    """

    parameters: int
    linear: int
    head: int
    squared: float
    activation_bytes: int
    context: int | None = None

    @property
    def attention_cost(self) -> float:
        """Cost of a squared token in units of a token's linear cost; the weight that packing balances by."""
        return self.squared / (6 * self.linear) if self.linear else 0.0

    def flops(self, tokens: int, targets: int, squares: float) -> float:
        """Training FLOPs of ``tokens`` tokens with ``targets`` targets and ``squares`` summed squared lengths."""
        return 6.0 * tokens * self.linear + 6.0 * targets * self.head + self.squared * squares


def model_cost(lm: PreTrainedModel) -> ModelCost:
    """Measure the sizes of a loaded model."""
    config = lm.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    hidden = int(config.hidden_size)
    head_dim = int(getattr(config, "head_dim", None) or (hidden // heads if heads else 0))
    layers = int(config.num_hidden_layers)
    embedding = lm.get_input_embeddings().weight
    head = lm.get_output_embeddings().weight
    matrices = sum(p.numel() for p in lm.parameters() if p.ndim >= 2 and p is not embedding and p is not head)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    return ModelCost(
        parameters=sum(p.numel() for p in lm.parameters()),
        linear=matrices,
        head=head.numel(),
        squared=6.0 * layers * heads * head_dim,
        # residual stream, norms, q, k, v and attention output; gate, up, their product and its input gradient
        activation_bytes=layers * (10 * hidden + 4 * inner) * 4,
        context=getattr(config, "max_position_embeddings", None),
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s this device can do at best: the data sheet's on known GPUs, measured by a matrix product on a CPU.

    None where it is not known (an unlisted GPU, or float32 on a GPU).
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in _PEAKS.items() if part in name), None) if dtype != torch.float32 else None
    size = 1024 if dtype == torch.float32 else 512
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(16):  # the best of many: a shared machine is often busy for a moment
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def available_memory(device: torch.device, share_with: int) -> int:
    """Bytes this process may count on; CPU memory is shared with the other ranks of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 // share_with
    except OSError:
        pass
    return (8 << 30) // share_with


def token_budget(cost: ModelCost, longest: int, memory: int, ranks: int, device: torch.device) -> int:
    """``max_tokens_per_device: auto``: what fits beside weights, gradients and moments, in steps of 512.

    More than 4,096 tokens a micro-batch gain nothing on a CPU (its matrices are large enough by then), more than
    65,536 nothing on a GPU.
    """
    static = cost.parameters * 16 // ranks
    room = max(0, int(memory * 0.7) - static)
    fitting = room // max(1, cost.activation_bytes) // 512 * 512
    ceiling = 4096 if device.type == "cpu" else 65_536
    return max(longest, min(ceiling, max(512, fitting)))


def best_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """``dtype: auto`` and the reason: bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU multiplies bfloat16 natively"
        return torch.float32, "this GPU has no native bfloat16"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this CPU multiplies bfloat16 natively"
    return torch.float32, "this CPU has no bfloat16 instructions; emulated ones are hundreds of times slower"
