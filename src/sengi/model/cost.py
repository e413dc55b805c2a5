"""What a model costs: floating-point operations, memory, and how fast this device can be at best.

FLOPs of training one pack (forward once, backward twice that; recomputation not counted):

    6 * tokens * (parameters of the layers' matrices)
  + 6 * supervised targets * (parameters of the head)        positions without a target skip the head
  + 6 * layers * heads * head_dim * sum of squared document lengths    causal: half of each square

Frozen weights get no gradient of their own: beside an adapter their 6 is a 4, and the adapter's parameters count 6. Of
experts those count that a token is sent to.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        adapter: parameters of a LoRA adapter beside the frozen model, which ``parameters`` does not count; else 0.
        adapted: parameters of the matrices that it stands beside.
        unused: parameters of the experts that a token is not sent to, of ``linear``.
        activation_bytes: rough bytes that the backward pass keeps for each token, in float32.
    """

    parameters: int
    linear: int
    head: int
    squared: float
    activation_bytes: int
    context: int | None = None
    adapter: int = 0
    adapted: int = 0
    unused: int = 0

    @property
    def trained(self) -> int:
        """Parameters that have a gradient and moments."""
        return self.adapter or self.parameters

    @property
    def attention_cost(self) -> float:
        """Cost of a squared token in units of a token's linear cost; the weight that packing balances by."""
        return self.squared / (6 * (self.linear - self.unused)) if self.linear else 0.0

    def flops(self, tokens: int, targets: int, squares: float) -> float:
        """Training FLOPs of ``tokens`` tokens with ``targets`` targets and ``squares`` summed squared lengths."""
        each = 4.0 if self.adapter else 6.0
        fixed = each * tokens * (self.linear - self.unused) + each * targets * self.head + self.squared * squares
        return fixed + 6.0 * tokens * self.adapter


def model_cost(lm: PreTrainedModel) -> ModelCost:
    """Measure the sizes of a loaded model."""
    config = lm.config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    hidden = int(config.hidden_size)
    head_dim = int(getattr(config, "head_dim", None) or (hidden // heads if heads else 0))
    layers = int(config.num_hidden_layers)
    embedding = lm.get_input_embeddings().weight
    head = lm.get_output_embeddings().weight
    trained = [p for p in lm.parameters() if p.requires_grad]
    adapter = sum(p.numel() for p in trained) if len(trained) < len(list(lm.parameters())) else 0
    matrices = sum(p.numel() for p in lm.parameters() if p.ndim >= 2 and p is not embedding and p is not head) - adapter
    adapted: list[Any] = [module.base_layer for module in lm.modules() if hasattr(module, "lora_A")]
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    return ModelCost(
        parameters=sum(p.numel() for p in lm.parameters()) - adapter,
        linear=matrices,
        head=head.numel(),
        squared=6.0 * layers * heads * head_dim,
        # residual stream, norms, q, k, v and attention output; gate, up, their product and its input gradient
        activation_bytes=layers * (10 * hidden + 4 * inner) * 4,
        context=getattr(config, "max_position_embeddings", None),
        adapter=adapter,
        adapted=sum(layer.weight.numel() for layer in adapted),
        unused=_unused(lm),
    )


def _unused(lm: PreTrainedModel) -> int:
    """Parameters of the experts, which lie in tensors of (experts, out, in), that a token is not sent to."""
    config = lm.config.get_text_config()
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((int(found) for name in names if (found := getattr(config, name, None))), 0)
    sent_to = int(getattr(config, "num_experts_per_tok", 0) or 0)
    if not 0 < sent_to < experts:
        return 0
    held = sum(p.numel() for p in lm.parameters() if p.ndim == 3 and len(p) == experts)
    return held // experts * (experts - sent_to)


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
    """Bytes that this process may still take; CPU memory is shared with the other ranks of this machine.

    A container's limit counts where it is below what the machine has (control groups, version 2).
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = 8 << 30
    return min(free, _container_room(free)) // share_with


def _container_room(otherwise: int, folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes below this container's limit, file cache not counted as used; ``otherwise`` without a limit."""
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(counts.get("inactive_file", 0)))
    except (OSError, ValueError):  # no such files, or the word "max"
        return otherwise


def best_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """``dtype: auto`` and the reason: bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU multiplies bfloat16 natively"
        return torch.float32, "this GPU has no native bfloat16"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "this CPU multiplies bfloat16 natively"
    return torch.float32, "this CPU has no bfloat16 instructions; emulated ones are hundreds of times slower"
