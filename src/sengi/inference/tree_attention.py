"""Attention along the paths of a prefix tree: every token sees its ancestors, whatever pack they were computed in.

Shapes: T tokens of a pack, S tokens of a path, H query heads, K key/value heads, G = H / K, D head size.

Packs come in depth-first order (:mod:`sengi.inference.prefix_tree`). So the keys and values of one path, the one to
the token computed last, are all that later tokens can see: they are kept by layer in buffers as long as the longest
path, and each node writes over what its elder sibling left.
"""

from __future__ import annotations

import inspect
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sengi.inference.lent_model import layer_index
from sengi.inference.prefix_tree import Pack
from sengi.model.attention import takes_flash

NAME = "sengi_tree"
QUERY_BLOCK = 128  # queries at a time: bounds the mask, and the logits where a soft cap needs them


class TreeWalk:
    """What attention keeps from one pack of a tree to the next.

    Args:
        longest: tokens of the longest path.
        device: of the model.
    """

    def __init__(self, longest: int, device: torch.device) -> None:
        self._longest = longest
        self._device = device
        self._paths: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, int | None], Tensor] = {}
        self._gather: _Gather | None = None
        self._pack: Pack | None = None

    def enter(self, pack: Pack) -> None:
        """The next forward call is over this pack, the successor of the one before."""
        self._pack = pack
        self._gather = None

    @property
    def kept_bytes(self) -> int:
        """Memory of the keys and values that are kept."""
        return sum(tensor.nbytes for pair in self._paths.values() for tensor in pair)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        window: int | None,
        cap: float | None,
    ) -> Tensor:
        """Attention of one layer over the pack; query (1, H, T, D), key and value (1, K, T, D); (1, T, H, D)."""
        assert self._pack is not None
        if layer not in self._paths:
            self._paths[layer] = tuple(  # type: ignore[assignment]
                x.new_empty(1, x.shape[1], self._longest, x.shape[3]) for x in (key, value)
            )
        if takes_flash(query, value, cap):
            return self._varlen(layer, query, key, value, scale, window)
        keys, values = self._paths[layer]
        groups = query.shape[1] // key.shape[1]
        # The G query heads of a key head become rows beside each other: keys are read once and never repeated.
        folded = query[0].unflatten(0, (-1, groups)).transpose(1, 2).flatten(1, 2).unsqueeze(0)  # (1, K, T * G, D)
        start = self._pack.begin
        parts = []
        for begin, depth, length, _ in self._pack.spans:
            own = slice(begin - start, begin - start + length)
            keys[:, :, depth : depth + length] = key[:, :, own]
            values[:, :, depth : depth + length] = value[:, :, own]
            for done in range(0, length, QUERY_BLOCK):
                count = min(QUERY_BLOCK, length - done)
                stop = depth + done + count
                first = max(0, stop - count - window + 1) if window else 0
                rows = slice((own.start + done) * groups, (own.start + done + count) * groups)
                mask = self._mask(count, stop - first - count, groups, window, query.dtype)
                parts.append(
                    _block(folded[:, :, rows], keys[:, :, first:stop], values[:, :, first:stop], mask, scale, cap)
                )
        result = torch.cat(parts, dim=2)[0].unflatten(1, (-1, groups))  # (K, T, G, D)
        return result.transpose(0, 1).flatten(1, 2).unsqueeze(0)

    def _mask(self, count: int, before: int, groups: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """0 where a query sees a key, else -inf: (count * G, before + count).

        All masks of a tree are windows of one: moving a block along its path moves the diagonal by as much.
        """
        if count == 1:
            return None  # the keys end with its own
        widest = self._longest
        if (groups, window) not in self._masks:
            query = torch.arange(QUERY_BLOCK, device=self._device).repeat_interleave(groups)[:, None]
            key = torch.arange(widest + QUERY_BLOCK, device=self._device)[None, :]
            distance = query + widest - key
            unseen = (distance < 0) | (distance >= (window or 2 * widest + QUERY_BLOCK))
            self._masks[groups, window] = torch.zeros(unseen.shape, dtype=dtype, device=self._device).masked_fill_(
                unseen, float("-inf")
            )
        mask = self._masks[groups, window][: count * groups, widest - before : widest + count]
        return mask.contiguous() if mask.is_cuda else mask  # CUDA's kernels want aligned rows

    def _varlen(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
    ) -> Tensor:
        """FlashAttention's variable-length kernel over gathered paths; its causal mask ends at the last key."""
        from torch.nn.attention.varlen import varlen_attn

        assert self._pack is not None
        if self._gather is None:
            self._gather = _Gather(self._pack, self._device)
        plan = self._gather
        gathered = []
        for path, new in zip(self._paths[layer], (key, value), strict=True):
            known = torch.cat([path[0, :, : plan.kept], new[0]], dim=1).transpose(0, 1)  # (kept + T, K, D)
            path[0, :, : len(plan.path)] = known.index_select(0, plan.path).transpose(0, 1)
            gathered.append(known.index_select(0, plan.keys))
        repeats = query.shape[1] // key.shape[1]
        options: dict[str, Any] = {"window_size": ((window or 0) - 1, 0)}  # (-1, 0) is plain causal
        if scale is not None:
            options["scale"] = scale
        if repeats > 1 and _varlen_groups_heads():
            options["enable_gqa"] = True
        elif repeats > 1:
            gathered = [x.repeat_interleave(repeats, dim=1) for x in gathered]
        rows = query[0].transpose(0, 1).contiguous()
        keys, values = gathered
        result = varlen_attn(
            rows, keys, values, plan.bounds_q, plan.bounds_k, plan.longest_q, plan.longest_k, **options
        )
        assert isinstance(result, Tensor)  # a tuple only when auxiliary outputs are asked for
        return result.unsqueeze(0)


class _Gather:
    """Where the keys of each span lie in (kept path, tokens of the pack), once for all layers."""

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self.kept = pack.spans[0].depth
        path = torch.arange(max(span.depth + span.length for span in pack.spans))
        keys = []
        for begin, depth, length, _ in pack.spans:
            path[depth : depth + length] = self.kept + begin - pack.begin + torch.arange(length)
            keys.append(path[: depth + length].clone())
        self.keys = torch.cat(keys).to(device)
        self.path = keys[-1].to(device)
        lengths_q, lengths_k = [span.length for span in pack.spans], [len(part) for part in keys]
        self.longest_q, self.longest_k = max(lengths_q), max(lengths_k)
        self.bounds_q, self.bounds_k = (
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
            for lengths in (lengths_q, lengths_k)
        )


@cache
def _varlen_groups_heads() -> bool:
    """Whether the kernel takes fewer key heads than query heads (torch 2.12 and newer)."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _block(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, cap: float | None) -> Tensor:
    """Attention of (1, K, R, D) rows over the (1, K, S, D) keys of a path, in the rows' dtype."""
    if cap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    logits = (q @ k.transpose(2, 3)).float() * (scale if scale is not None else q.shape[3] ** -0.5)
    logits = cap * torch.tanh(logits / cap)
    if mask is not None:
        logits = logits + mask
    return logits.softmax(dim=-1).to(v.dtype) @ v


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree_walk: TreeWalk | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' layers call; see :meth:`TreeWalk.attend`.

    Args:
        attention_mask: must be None.
        tree_walk: has entered the pack that this call is over.
        sliding_window: tokens each token sees, itself included; None for its whole path.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).

    Returns:
        (1, T, H, D) and None in place of attention weights.

    Raises:
        ValueError: a mask, no walk, a batch of rows, dropout, attention sinks, or a layer that does not say which
            layer it is or how far it sees.
    """
    if tree_walk is None:
        raise ValueError("attention along a prefix tree needs tree_walk")
    if query.shape[0] != 1:
        raise ValueError(f"attention along a prefix tree takes one row of nodes, got a batch of {query.shape[0]}")
    layer = layer_index(module, attention_mask, dropout, sliding_window, kwargs)
    return tree_walk.attend(layer, query, key, value, scaling, sliding_window, softcap), None


AttentionInterface.register(NAME, tree_attention)
