"""Memory of a training run before it is started: every part in bytes, their sum, and what is free.

Weights, gradients and moments follow from numbers of parameters; what a micro-batch adds is found by running the
model's own code without content (live_bytes.py); what several processes share follows from how FSDP2 gathers and
reduces.
The constants at the top are the only things that were fitted (docs/memory.md says on what, and how far it is off on
configurations that they were not fitted on).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sengi.model.checkpointing import Dial
from sengi.model.live_bytes import PHASES, MicroBatch

# Bytes of AdamW's two moments for each trained parameter, by the recipe's ``optim``
STATE_BYTES = {"adamw_torch_fused": 8.0, "adamw_anyprecision": 4.0, "adamw_bnb_8bit": 2.0 + 2 * 4 / 256}
# Float32 copies of a tensor that its update makes on a CPU, by the recipe's ``optim``: bitsandbytes widens gradient,
# parameter and both moments there (4.8 were measured); the other two update in place
UPDATE_COPIES = {"adamw_bnb_8bit": 5}
# A CPU process after its first step is larger than before it by libraries that load when they are used
LATER = 60 << 20
# What glibc's heap holds beside what is in use. Blocks below 32 MiB come from it, each layer leaves a part of what it
# frees. Shares of activations, of activations that are computed again, and of layers' weights that are gathered (fitted
# with large blocks at whole pages: sengi.environment.ask_for_huge_pages)
HELD_KEPT, HELD_AGAIN, HELD_GATHERED = 0.3, 0.3, 1.2
# In place of HELD_KEPT: in half precision on one process, and what oneDNN's kernels and buffers take there; beside an
# adapter, whose layers make three short-lived blocks each
HELD_HALF, KERNELS = 0.2, 200 << 20
HELD_ADAPTER = 0.5
COMPILED = 0.2  # of what layers keep, that compiled layers do without (fitted on three such runs; a Llama's: 0.24)
HELD_CUDA = 0.08  # of what comes and goes: PyTorch's CUDA allocator rounds and splits its segments (not measured here)
COPIED = 0.5  # of the free memory, at most, that the copies of background saves take (train/background_save.py)
FITS = 0.9  # share of the free memory that an automatic choice fills: the forecast is good to 10%
# Tokens above which a larger micro-batch gains little, and those below which it costs much
CEILING = {"cpu": 4096, "cuda": 65_536}
USEFUL = {"cpu": 1024, "cuda": 8192}
STEP = 512  # automatic budgets are multiples of it


@dataclass(frozen=True)
class ModelSizes:
    """What the forecast needs to know of a model.

    Attributes:
        trained: parameters with a gradient, held in float32.
        frozen_bytes: memory of the others, as far as they are split over processes.
        parameters: all of them.
        layer: parameters of one of the ``layers`` transformer layers, trained or not; ``outside`` those outside.
        state_bytes: of the optimizer for each trained parameter.
        whole_bytes: memory of frozen weights that every process holds whole: quantized layers.
        update_bytes: what the update of the largest tensor makes beside it on a CPU.
        read_bytes: of the model while it is read, with its files, which are mapped until then.
    """

    trained: int
    frozen_bytes: int
    parameters: int
    layers: int
    layer: int
    outside: int
    state_bytes: float
    whole_bytes: int = 0
    update_bytes: int = 0
    read_bytes: int = 0


@dataclass(frozen=True)
class MemoryForecast:
    """Memory of one process of the run at its highest.

    Attributes:
        moment: when that is.
        parts: bytes by part at that moment, largest first.
        available: bytes that this process may use in all, or None where that is not known.
    """

    moment: str
    parts: dict[str, int]
    available: int | None = None

    @property
    def peak(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is below what is available."""
        return self.available is None or self.peak <= self.available

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as kept in plan.json."""
        return {**asdict(self), "peak": self.peak}


@dataclass(frozen=True)
class Sharing:
    """How several processes share a model under FSDP2.

    Attributes:
        shards: processes that each parameter is split over; 1 without sharding.
        kept: gathered weights stay from the forward to the backward pass.
        reduced_each: every micro-batch reduces gradients; else they are held whole until the last one does.
        halved: the first half of a step is reduced on its own (data/packing.py): the second comes beside it.
    """

    shards: int = 1
    kept: bool = False
    reduced_each: bool = False
    halved: bool = False


def forecast_memory(
    sizes: ModelSizes,
    largest: MicroBatch,
    *,
    again: float,
    later: float,
    sharing: Sharing,
    device: torch.device,
    resident: int,
    copied: int | None,
    available: int | None,
    half: bool = False,
) -> MemoryForecast:
    """Put the parts together.

    Args:
        sizes: of the model.
        largest: the largest micro-batch, traced with gradients in place; it comes first in a step.
        again: bytes of activations that its layers compute again, in all.
        later: share of its tokens that the next micro-batch of a step has; 0 where there is only one.
        sharing: with other processes.
        device: of the training.
        resident: bytes of the process before the model is loaded; 0 on a GPU, whose memory is counted alone.
        copied: bytes of whole weights that rank 0 copies for the files of a checkpoint, beside its part of the state,
            where checkpoints are written from a copy in the memory of the CPU while training goes on; else None.
        available: bytes that the process may use in all.
        half: whether the computation is in half precision.
    """
    cpu, state = device.type == "cpu", int(sizes.state_bytes * sizes.trained)
    weights, shards = 4 * sizes.trained + sizes.frozen_bytes, sharing.shards
    static = {
        "process": resident + LATER if cpu else 0,
        "weights": weights // shards + sizes.whole_bytes,
        "optimizer": state // shards,
    }
    moments = _moments(sizes, largest, later, sharing, held=cpu)
    moment, moving = max(moments.items(), key=lambda item: sum(item[1].values()))
    parts = static | moving
    if cpu:
        gathered = 0 if sharing.shards == 1 or sharing.kept else 4 * sizes.layers * _split_of_layer(sizes)
        alone = half and sharing.shards == 1
        held = HELD_ADAPTER if sizes.trained < sizes.parameters else HELD_HALF if alone else HELD_KEPT
        parts["allocator"] = int(held * largest.saved + HELD_AGAIN * again + HELD_GATHERED * gathered)
        parts["allocator"] += KERNELS if alone else 0
    else:
        parts["allocator"] = int(HELD_CUDA * sum(moving.values()))
    copies = (4 * sizes.trained + state) // shards + (copied or 0)
    if copied is not None and cpu and (available is None or copies <= COPIED * (available - sum(parts.values()))):
        parts["copy for background saves"] = copies
    if cpu and static["process"] + sizes.read_bytes > sum(parts.values()):
        moment, parts = "reading the model", {"process": static["process"], "weights": sizes.read_bytes}
    ordered = sorted(((name, size) for name, size in parts.items() if size), key=lambda item: -item[1])
    return MemoryForecast(moment, dict(ordered), available)


def _moments(
    sizes: ModelSizes, largest: MicroBatch, later: float, sharing: Sharing, held: bool
) -> dict[str, dict[str, int]]:
    """What comes and goes at the moments of a step that can be the highest.

    With ``held`` the place of the last step's gradients is never free for anything else (a heap).
    """
    whole = 4 * sizes.trained
    own = whole // sharing.shards
    # between two micro-batches, or at the end of the only one
    begun = own if sharing.shards > 1 and (sharing.reduced_each or not later) else whole
    beside = own if sharing.shards > 1 and sharing.halved and not sharing.reduced_each else 0
    gathered = _gathered(sizes, sharing)
    phase = max(PHASES[:-1], key=lambda name: largest.peaks[name])
    peak, kept = int(largest.peaks[phase]), int(min(largest.saved, largest.peaks[phase]))
    work = "loss head" if "head" in phase else "backward"
    return {
        "the first micro-batch": {
            "gradients": begun if held else 0,
            "activations": kept,
            work: peak - kept,
            "gathered weights": gathered,
        },
        "a later micro-batch": {
            "gradients": begun + beside,
            "activations": int(later * kept),
            work: int(later * (peak - kept)),
            "gathered weights": gathered,
        }
        if later
        else {"gradients": 0},
        "the end of a backward pass": {
            "gradients": begun + beside,
            "backward": int(largest.peaks[PHASES[-1]]),
            "gathered weights": gathered,
        },
        # a heap has not given back what the micro-batches took
        "the update": {"gradients": own, "update": sizes.update_bytes, "activations": kept}
        if held
        else {"gradients": own},
    }


def _gathered(sizes: ModelSizes, sharing: Sharing) -> int:
    """Whole weights on a rank: those outside of layers from forward to backward, a layer, the next and a buffer."""
    if sharing.shards == 1:
        return 0
    in_float32 = not sizes.frozen_bytes or sizes.whole_bytes
    each = 4 if in_float32 else sizes.frozen_bytes / max(1, sizes.parameters - sizes.trained)
    layers = sizes.layers if sharing.kept else min(3, sizes.layers)
    return int(each * (sizes.outside + layers * _split_of_layer(sizes)))


def _split_of_layer(sizes: ModelSizes) -> int:
    """Parameters of a layer that are split over processes; beside quantized ones only the adapter's."""
    return sizes.trained // sizes.layers if sizes.whole_bytes else sizes.layer


def choose(
    recipe_dial: Dial | None,
    budget: int | None,
    longest: int,
    device: torch.device,
    forecast: Callable[[Dial, int], MemoryForecast],
) -> tuple[Dial, int]:
    """``gradient_checkpointing: auto`` and ``max_tokens_per_device: auto``: the fastest dial that fits, its budget.

    A dial fits if a micro-batch of USEFUL tokens (or the given budget) does; a larger one comes before less
    recomputation only up to that size, because larger matrices gain little beyond it.

    Args:
        recipe_dial: the dial that is asked for, or None to choose.
        budget: the budget that is asked for, or None to choose.
        longest: tokens of the longest sample, which a budget must hold.
        device: of the training.
        forecast: memory at a dial and a budget.

    Returns:
        Dial and budget; where nothing fits, the smallest ones that could be.
    """
    dials: tuple[Dial, ...] = (recipe_dial,) if recipe_dial is not None else ("none", "selective", "full")
    ceiling = max(longest, CEILING[device.type])
    useful = max(longest, USEFUL[device.type])
    for dial in dials:
        largest = budget if budget is not None else _largest(dial, longest, ceiling, forecast)
        if _fits(forecast(dial, largest)) and (budget is not None or largest >= min(useful, ceiling)):
            return dial, largest
    dial = dials[-1]
    return dial, budget if budget is not None else _largest(dial, longest, ceiling, forecast)


def _fits(forecast: MemoryForecast) -> bool:
    return forecast.available is None or forecast.peak <= FITS * forecast.available


def _largest(dial: Dial, longest: int, ceiling: int, forecast: Callable[[Dial, int], MemoryForecast]) -> int:
    """The largest budget that fits, in multiples of STEP; bytes grow along a line, so few budgets need be looked at."""
    low, high = max(longest, STEP), ceiling
    if high <= low or _fits(top := forecast(dial, high)):
        return max(low, high)
    bottom = forecast(dial, low)
    if not _fits(bottom) or bottom.available is None:
        return low
    slope = (top.peak - bottom.peak) / (high - low)
    guess = low + int((FITS * bottom.available - bottom.peak) / slope)
    for tokens in range(guess // STEP * STEP, low, -STEP):
        if _fits(forecast(dial, tokens)):
            return tokens
    return low
