"""Packed documents through torch's FlexAttention: on a GPU, for what FlashAttention's kernel does not take.

Shapes: T tokens of a pack, padded to S, in N blocks of BLOCK, H query heads, K key/value heads, D head size.

float32, soft caps, older GPUs and large heads come here. Which blocks of keys a block of queries needs is told from the
bounds of the documents, on the device and without waiting for it; the square of the pack is never made. One compiled
kernel serves packs of all lengths: what differs between packs are tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._python_dispatch import _get_current_dispatch_mode

BLOCK = 128  # tokens; FlexAttention's own default
SMALLEST, LARGEST = 16, 256  # head sizes: below, it has no kernel; above, tiles outgrow the shared memory of most GPUs
PREFIX = -1  # number of the shared tokens' document, which all others see


def can_flex(query: Tensor, value: Tensor) -> bool:
    """Whether a pack goes through FlexAttention: heads it takes, (..., T, D) each, on this device with this compiler.

    Packs below two blocks, as models are tried with, do not: the kernel must be compiled first. Nor does anything where
    operations are watched (the memory forecast, selective checkpointing): in compiled code there are none to see.
    """
    if not query.is_cuda or query.shape[-2] < 2 * BLOCK or _get_current_dispatch_mode() is not None:
        return False
    sizes = (query.shape[-1], value.shape[-1])
    return all(SMALLEST <= size <= LARGEST for size in sizes) and _works(query.device, query.dtype, *sizes)


def attend_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    shared: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention inside each document of a pack.

    Args:
        query: (1, H, T, D); ``key`` and ``value``: (1, K, T, D), H a multiple of K.
        bounds: int32 (documents + 1,), the first token of each document and T at the end; read on the device only.
        shared: tokens at the beginning of the pack, a document of their own, that all others see before their own.
        scale: what logits are multiplied by.
        window: tokens each token sees, itself included; None for all before it.
        softcap: logits become ``softcap * tanh(logits / softcap)``.

    Returns:
        (1, T, H, D) in the type of the query.
    """
    tokens = query.shape[2]
    more = max(2 * BLOCK - tokens, -tokens % BLOCK)  # with one block only, sizes of 1 would be compiled apart
    query, key, value = (pad(x, (0, 0, 0, more)) for x in (query, key, value))
    mask = _mask_of_pack(bounds, tokens + more, shared, window)
    capped = None if softcap is None else _capped(softcap)
    grouped = query.shape[1] != key.shape[1]
    result = _compiled()(query, key, value, capped, mask, scale=scale, enable_gqa=grouped)
    return result[:, :, :tokens].transpose(1, 2)


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _capped(cap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


_last: list[tuple[tuple[Any, ...], Any]] = []  # masks of the newest pack, by kind of layer: made once, for all layers


def _mask_of_pack(bounds: Tensor, size: int, shared: int, window: int | None) -> Any:
    if _last and _last[0][0][0] is not bounds:
        _last.clear()
    for (_, *kind), mask in _last:
        if kind == [size, shared, window]:
            return mask
    mask = block_mask(bounds, size, shared, window)
    _last.append(((bounds, size, shared, window), mask))
    return mask


def block_mask(bounds: Tensor, size: int, shared: int, window: int | None) -> Any:
    """The mask of a pack as FlexAttention's BlockMask.

    Args:
        bounds: as in :func:`attend_flex`.
        size: S, the tokens of the pack rounded up to a multiple of BLOCK; what lies behind the documents sees itself.
        shared: as in :func:`attend_flex`; ``window`` also.
    """
    from torch.nn.attention.flex_attention import BlockMask

    token = torch.arange(size, device=bounds.device)
    document = torch.searchsorted(bounds[1:].long(), token, right=True)
    starts = bounds.long()[document]
    position = token - starts
    if shared:
        position = torch.where(document > 0, position + shared, position)
        document = torch.where(document > 0, document, PREFIX)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        inside = (document[query] == document[key]) | (document[key] == PREFIX)
        causal = inside & (query >= key)
        return causal if window is None else causal & (position[query] - position[key] < window)

    needed, whole = _blocks(document, position, starts, shared, window)
    return BlockMask.from_kv_blocks(
        *_ordered(needed & ~whole), *_ordered(whole), BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(size, size)
    )


def _blocks(
    document: Tensor, position: Tensor, starts: Tensor, shared: int, window: int | None
) -> tuple[Tensor, Tensor]:
    """Two bool (N, N): key blocks of which a query block sees something, and those of which it sees all."""
    count = len(document) // BLOCK
    block = torch.arange(count, device=document.device)
    first, last = block * BLOCK, block * BLOCK + BLOCK - 1
    # The tokens of its own documents that a block sees are those from what its first token sees up to its last one.
    lowest = starts[first] if window is None else torch.maximum(starts[first], first - window + 1)
    needed = (block[None, :] >= (lowest // BLOCK)[:, None]) & (block[None, :] <= block[:, None])
    earlier = block[None, :] < block[:, None]
    if window is None:  # keys that are not shared must be of the block's only document
        whole = earlier & ((starts[last][:, None] <= first.clamp_min(shared)[None, :]) | (last[None, :] < shared))
    else:
        whole = earlier & (starts[last][:, None] <= first[None, :]) & (last[:, None] - first[None, :] < window)
    if shared:
        # of the shared tokens those that the token nearest to them sees
        nearest = torch.where(document == PREFIX, shared + len(position), position).view(count, BLOCK).amin(dim=1)
        begins = torch.zeros_like(nearest) if window is None else (nearest - window + 1).clamp_min(0)
        of_shared = (nearest < shared + len(position)) & (begins < shared)
        needed |= of_shared[:, None] & (last[None, :] >= begins[:, None]) & (first[None, :] < shared)
    return needed, whole


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row there are and which, first: int32 (1, 1, N) and (1, 1, N, N)."""
    number = blocks.sum(dim=1, dtype=torch.int32)
    which = blocks.int().argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return number[None, None], which[None, None]


@cache
def _works(device: torch.device, dtype: torch.dtype, size: int, of_values: int) -> bool:
    """Whether a small pack of such heads goes through forward and backward here; warns where it does not."""
    tokens = 2 * BLOCK
    bounds = torch.tensor([0, tokens], device=device, dtype=torch.int32)
    query, key, value = (
        torch.zeros(1, 2, tokens, n, device=device, dtype=dtype, requires_grad=True) for n in (size, size, of_values)
    )
    try:
        with torch.enable_grad():
            attend_flex(query, key, value, bounds, 0, 1.0, None, None).sum().backward()
    except Exception as error:  # compilers fail in their own ways: no Triton, a head too large for this GPU
        cause = (str(error) or type(error).__name__).strip().splitlines()[0]
        warnings.warn(
            f"FlexAttention does not work here ({cause}): documents are attended one at a time, which is slower",
            stacklevel=2,
        )
        return False
    return True
