"""A micro-batch that does not fit: the step is done again with smaller ones, by all ranks together.

Nothing of the step has reached the weights when a forward or backward pass runs out of memory, and each target's
weight in the loss is fixed before the first of them: the same samples in smaller micro-batches give the same gradient.

Under FSDP2 the other ranks are in the middle of gathering weights when one fails, and would wait for it. It therefore
keeps step: it runs an idle micro-batch of two tokens whose first collectives, those it took part in before it failed,
are left out. Then all ranks are at the same place again, finish the step, agree that it failed, and drop it.

A process that the system's out-of-memory killer ends cannot do any of this (docs/memory.md).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from sengi.data.packing import StepPacks
from sengi.data.store import TokenStore
from sengi.errors import SengiError, one_line
from sengi.train.distributed import World
from sengi.train.run_plan import RunPlan

# What PyTorch's allocator for CPUs, its oneDNN and C++'s own say in a RuntimeError
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc", "bad allocation")


class StepOutOfMemory(Exception):
    """A micro-batch of this step did not fit on some rank; weights and optimizer are as before the step.

    Attributes:
        causes: what the allocator said, by rank; only those that failed.
        tokens: tokens of the smallest micro-batch that failed, and ``samples`` in it.
    """

    def __init__(self, causes: dict[int, str], tokens: int, samples: int) -> None:
        super().__init__("; ".join(f"rank {rank}: {cause}" for rank, cause in causes.items()))
        self.causes, self.tokens, self.samples = causes, tokens, samples


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


class MemoryGuard:
    """Runs the micro-batches of a rank and keeps the ranks together when one of them does not fit.

    Args:
        model: sharded or not; its collectives are counted from now on.
        world: the processes of the run.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self.model, self.world = model, world
        self._failure: list[Any] | None = None
        self._collectives = _Collectives()
        if world.size > 1 and hasattr(model, "reset_iter_state"):  # torch 2.13; earlier ones cannot give up a step
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.set_custom_all_gather(_AllGather(self._collectives))  # type: ignore[arg-type]
                    module.set_custom_reduce_scatter(_ReduceScatter(self._collectives))  # type: ignore[arg-type]

    def micro_batch(self, work: Callable[[], Tensor], idle: Callable[[], Tensor], size: Sequence[int]) -> Tensor:
        """Run one micro-batch, or an idle one once an earlier one of this step has failed.

        Args:
            work: forward and backward of the micro-batch; returns its share of the loss.
            idle: the same of one without targets.
            size: its tokens and samples.

        Raises:
            StepOutOfMemory: it did not fit, and no other rank waits for this one.
        """
        self._collectives.begin(skipped=0)
        if self._failure is not None:
            return idle()
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            cause = one_line(error, 200)
        # Only here the traceback is gone, and with it the activations that it held
        self._failure = [cause, *size]
        done = self._collectives.done
        release(self.model)
        if self.world.size == 1:
            self.agree()
        if not isinstance(self.model, FSDPModule) or self._hybrid() or not hasattr(self.model, "reset_iter_state"):
            raise SengiError(
                f"rank {self.world.rank}: out of memory ({cause}), and with this version of torch or this sharding the "
                "step cannot be given up; lower max_tokens_per_device and run the same command again"
            )
        self.model.reset_iter_state()
        self._collectives.begin(skipped=done)
        return idle()

    def agree(self) -> None:
        """Ask whether all ranks have the step's gradient; before anything is done with it.

        Raises:
            StepOutOfMemory: on every rank, if it failed on one.
        """
        found, self._failure = self.world.gather(self._failure), None
        failed = {rank: failure for rank, failure in enumerate(found) if failure is not None}
        if failed:
            release(self.model)
            _, tokens, samples = min(failed.values(), key=lambda failure: failure[1])
            raise StepOutOfMemory({rank: failure[0] for rank, failure in failed.items()}, tokens, samples)

    def _hybrid(self) -> bool:
        """Whether gradients cross a second dimension, whose collectives cannot be counted from outside."""
        return any(p.device_mesh.ndim > 1 for p in self.model.parameters() if hasattr(p, "device_mesh"))


def smaller_budget(packs: StepPacks, lengths: NDArray[np.int64], longest: int) -> int | None:
    """The budget to go on with: half of the largest micro-batch, but room for every sample; None if there is no less.

    Args:
        packs: of the step that failed.
        lengths: tokens of its samples.
        longest: tokens of the longest sample of the data.
    """
    largest = max(int(lengths[pack].sum()) for rank in packs.ranks for pack in rank if len(pack))
    halved = max(longest, largest // 2)
    return halved if halved < largest else None


def does_not_fit(step: int, error: StepOutOfMemory, plan: RunPlan, store: TokenStore) -> SengiError:
    """The end of a run whose micro-batches cannot be smaller, in words."""
    longest = int(store.lengths.argmax())
    cure = "set gradient_checkpointing: full and run the same command again"
    if plan.gradient_checkpointing == "full":
        cure = (
            "begin in another output_dir with a lower max_length, optim: adamw_bnb_8bit, use_peft: true, a smaller "
            "model or more processes"
        )
    return SengiError(
        f"step {step}: out of memory ({error}) with a micro-batch of {error.tokens:,} tokens in {error.samples:,} "
        f"samples; it cannot be smaller than the longest sample, {store.place(longest)} with "
        f"{int(store.lengths[longest]):,} tokens; the forecast was {plan.memory['peak'] / 1e9:,.2f} GB; the last "
        f"checkpoint is safe; {cure}"
    )


def of_fixed_size(work: Callable[[], object], what: str) -> None:
    """Do work whose memory no smaller micro-batch makes less.

    Raises:
        SengiError: there is no memory for it; of the optimizer's step some weights may be done and others not.
    """
    try:
        work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise SengiError(
            f"out of memory in {what} ({one_line(error, 200)}); the last checkpoint is safe; free memory and run the "
            "same command again, or begin in another output_dir with another optim or use_peft: true"
        ) from None


def release(model: nn.Module) -> None:
    """Give back gradients, left-over graphs and the GPU allocator's unused blocks."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Collectives:
    """Counts FSDP's collectives of one micro-batch, and leaves out the first ones of an idle one."""

    def __init__(self) -> None:
        self.done = self._skipped = 0

    def begin(self, skipped: int) -> None:
        self.done, self._skipped = 0, skipped

    def run(self, collective: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        left_out = self.done < self._skipped
        result = None if left_out else collective(*args, **kwargs)
        self.done += 1
        return result


class _Counted:
    """What FSDP2 asks of a custom collective."""

    def __init__(self, collectives: _Collectives) -> None:
        self.collectives = collectives

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _AllGather(_Counted):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        return self.collectives.run(
            dist.all_gather_into_tensor, output_tensor, input_tensor, group=group, async_op=async_op
        )


class _ReduceScatter(_Counted):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        return self.collectives.run(
            dist.reduce_scatter_tensor, output_tensor, input_tensor, op=op, group=group, async_op=async_op
        )
