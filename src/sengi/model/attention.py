"""Padding-free attention: documents lie end to end in one row, and each token sees its own document only.

Shapes: B batch (always 1 here), T tokens of a pack, H query heads, K key/value heads, D head size.

One function is registered with transformers' ``AttentionInterface`` and used by every model family. It never
sees a mask: transformers builds a block-diagonal mask only when it gets neither ``attention_mask`` nor a KV
cache, and leaks across documents without a word when it gets either; so both are refused (:func:`guard`).
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from sengi.model.flex_documents import attend_flex, can_flex
from sengi.model.long_documents import attend_long
from sengi.model.short_documents import LONGEST, attend_short

NAME = "sengi_documents"


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    shared_tokens: int = 0,
    shared_keys: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    kernel: Callable[..., Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each document of a pack.

    A pack may begin with tokens that all documents share (:mod:`sengi.data.packs`): they are the first document, and
    each of the others sees them before its own.

    Args:
        query: (1, H, T, D); ``key`` and ``value``: (1, K, T, D) with H a multiple of K.
        attention_mask: must be None.
        cu_seq_lens_q: int32 (documents + 1,), the first token of each document and T at the end.
        cu_seq_lens_k: the same for the keys, shared ones counted in each document.
        max_length_q: tokens of the longest document, shared ones included.
        shared_tokens: tokens that the documents share, or 0.
        shared_keys: int64, for each place in ``cu_seq_lens_k`` the token whose key it is; None without shared tokens.
        sliding_window: tokens each token sees, itself included; None for all before it.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).
        kernel: what computes it where FlashAttention's kernel cannot, with the arguments of :func:`attend`, or None
            for that.

    Returns:
        (1, T, H, D) and None in place of attention weights.

    Raises:
        ValueError: a mask, no document bounds, a batch of rows, dropout or attention sinks.
    """
    if attention_mask is not None:
        raise ValueError("padding-free attention got an attention_mask; pass cu_seq_lens_q and no mask")
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("padding-free attention needs cu_seq_lens_q and max_length_q (the bounds of the documents)")
    if query.shape[0] != 1:
        raise ValueError(f"padding-free attention takes one row of documents, got a batch of {query.shape[0]}")
    if dropout:
        raise ValueError(f"attention dropout {dropout} would make the result depend on the packing; set it to 0")
    if kwargs.get("s_aux") is not None:
        raise ValueError("attention sinks (s_aux) are not supported by padding-free attention")
    kind = query.device.type
    half = torch.is_autocast_enabled(kind)
    if half:  # queries and keys leave autocast, turned by positions in float32
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if takes_flash(query, value, softcap):
        if shared_keys is not None:
            key, value = key.index_select(2, shared_keys), value.index_select(2, shared_keys)
        bounds = (cu_seq_lens_q, cu_seq_lens_q if cu_seq_lens_k is None else cu_seq_lens_k)
        return _varlen(query, key, value, bounds, max_length_q, scale, sliding_window), None
    options = (cu_seq_lens_q, max_length_q, shared_tokens, scale, sliding_window, softcap, half)
    return (kernel or attend)(query, key, value, *options), None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    shared_tokens: int,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    half: bool,
) -> Tensor:
    """What :func:`document_attention` does where FlashAttention's kernel cannot, by the best way there is.

    On a GPU that is FlexAttention, else one document at a time; on a CPU in half precision batched products
    (:mod:`sengi.model.short_documents`, :mod:`sengi.model.long_documents`), in float32 one document at a time.

    Args:
        bounds: ``cu_seq_lens_q``.
        longest: ``max_length_q``.
        half: whether the computation is in half precision by autocast.
    """
    if can_flex(query, value):
        with torch.autocast(query.device.type, enabled=False):  # all have one type by now
            return attend_flex(query, key, value, bounds, shared_tokens, scale, sliding_window, softcap)
    window = sliding_window if sliding_window is not None and sliding_window < longest else None
    kind = query.device.type
    lengths = [b - a for a, b in itertools.pairwise(bounds.tolist())]
    on_cpu_in_half = half and kind == "cpu" and softcap is None
    with torch.autocast(kind, enabled=False):
        whole = [lengths[0], *(shared_tokens + n for n in lengths[1:])]  # with what each sees before its own
        short = [number for number, length in enumerate(whole) if on_cpu_in_half and length <= LONGEST]
        if len(short) == len(lengths):
            q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
            return attend_short(q, k, v, lengths, shared_tokens, scale, window).unsqueeze(0)
        # Split along the tokens as they lie in memory, and not sliced: the backward pass of a split is one
        # concatenation, that of every slice a tensor as long as the pack.
        split = list(zip(*(x.transpose(1, 2).split(lengths, dim=1) for x in (query, key, value)), strict=True))
        pieces: dict[int, Tensor] = {}
        if short:  # at once, beside those that go alone
            q, k, v = (
                torch.cat(parts, dim=1).squeeze(0) for parts in zip(*(split[number] for number in short), strict=True)
            )
            own = [lengths[number] for number in short]
            result = attend_short(q, k, v, own, shared_tokens, scale, window).unsqueeze(0)
            pieces.update(zip(short, result.split(own, dim=1), strict=True))
        for number in set(range(len(lengths))) - set(short):
            q, k, v = split[number]
            if before := shared_tokens if number else 0:
                q, k, v = (torch.cat(pair, dim=1) for pair in zip(split[0], split[number], strict=True))
            result = _one_document(q, k, v, on_cpu_in_half, scale, window, softcap)
            pieces[number] = result[:, before:] if before else result
        return torch.cat([pieces[number] for number in range(len(lengths))], dim=1)


def takes_flash(query: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether FlashAttention's kernel as bundled with torch can take these heads, (..., D) each, on this GPU.

    It wants half precision, an Ampere GPU or newer, and one head size for keys and values, of 256 or less in steps of 8
    (torch/aten/src/ATen/native/transformers/cuda/flash_attn).
    """
    size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and softcap is None
        and value.shape[-1] == size
        and size <= 256
        and size % 8 == 0
        and torch.cuda.get_device_properties(query.device).major >= 8
    )


def _one_document(
    q: Tensor, k: Tensor, v: Tensor, on_cpu_in_half: bool, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention of (1, L, heads, D) each; (1, L, H, D)."""
    if on_cpu_in_half:
        return attend_long(q.squeeze(0), k.squeeze(0), v.squeeze(0), scale, window).unsqueeze(0)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return _causal(q, k, v, scale, window, softcap).transpose(1, 2)


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    length = q.shape[2]
    if softcap is None and (window is None or window >= length):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    position = torch.arange(length, device=q.device)
    distance = position[:, None] - position[None, :]
    seen = (distance >= 0) & (distance < (window or length))
    if softcap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    logits = (q @ k.transpose(2, 3)).float() * scale
    logits = (softcap * torch.tanh(logits / softcap)).masked_fill(~seen, float("-inf"))
    return logits.softmax(dim=-1).to(v.dtype) @ v


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: tuple[Tensor, Tensor],
    longest: int,
    scale: float,
    window: int | None,
) -> Tensor:
    """FlashAttention's variable-length kernel as bundled with torch; its signature grew over the versions.

    Where a document has more keys than queries, its last query sees its last key: the shared ones come before.
    """
    from torch.nn.attention.varlen import varlen_attn  # here, as it loads the compiler: a second

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = ((window or 0) - 1, 0)  # (-1, 0) is plain causal
    elif window is None:
        options["is_causal"] = True
    else:
        raise ValueError(f"sliding-window attention of {window} tokens needs torch 2.11 or newer on CUDA")
    if "scale" in known:
        options["scale"] = scale
    else:
        q = q * (scale * q.shape[3] ** 0.5)
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1 and "enable_gqa" in known:
        options["enable_gqa"] = True
    elif repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    q, k, v = (x.squeeze(0).transpose(0, 1).contiguous() for x in (q, k, v))  # (T, heads, D)
    bounds_q, bounds_k = (x.to(torch.int32) for x in bounds)
    result = varlen_attn(q, k, v, bounds_q, bounds_k, longest, longest, **options)
    assert isinstance(result, Tensor)  # a tuple only when auxiliary outputs are asked for
    return result.unsqueeze(0)


AttentionInterface.register(NAME, document_attention)


def guard(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the decoder: refuse what makes transformers leak across documents.

    Raises:
        ValueError: an attention mask, a KV cache, or no document bounds.
    """
    if len(args) > 1:
        raise ValueError("a padding-free model takes all but input_ids by name (a second place is attention_mask)")
    if kwargs.get("attention_mask") is not None:
        raise ValueError("a padding-free model takes no attention_mask (a mask of ones leaks across documents)")
    if kwargs.get("past_key_values") is not None or kwargs.get("use_cache"):
        raise ValueError("a padding-free model takes no KV cache in training (a cache leaks across documents)")
    if kwargs.get("cu_seq_lens_q") is None:
        raise ValueError("a padding-free model needs cu_seq_lens_q; for a single text use generation_mode()")


def make_padding_free(model: PreTrainedModel) -> None:
    """Switch ``model`` to :func:`document_attention` and put the guard before its decoder."""
    model.set_attn_implementation(NAME)
    model.config.use_cache = False
    decoder = model.get_decoder()
    decoder.register_forward_pre_hook(guard, with_kwargs=True)


def undo_padding_free(model: PreTrainedModel, attn_implementation: str) -> None:
    """Take the guard away and go back to ``attn_implementation``."""
    decoder = model.get_decoder()
    for number, hook in list(decoder._forward_pre_hooks.items()):
        if hook is guard:
            del decoder._forward_pre_hooks[number]
            decoder._forward_pre_hooks_with_kwargs.pop(number, None)
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation(attn_implementation)


@contextmanager
def generation_mode(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Lend a padding-free model to code that pads and caches (generation, scoring); restored on exit."""
    cache = model.config.use_cache
    undo_padding_free(model, "sdpa" if model._supports_sdpa else "eager")  # Gemma 2 has soft caps, SDPA has not
    model.config.use_cache = True
    try:
        yield model
    finally:
        make_padding_free(model)
        model.config.use_cache = cache
