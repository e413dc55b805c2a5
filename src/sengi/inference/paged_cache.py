"""Keys and values of the rows that are being written, in blocks of a pool (a paged cache).

Shapes: n rows that are being written, T tokens of a call, P tokens of the shared prefix, C tokens of the blocks of
the longest row of some, H query heads, K key/value heads, G = H / K, D head size (that of values may be another).

Rows that begin alike (few-shot examples, a system prompt) share one copy of the prefix's keys and values. What a row
has of its own lies in blocks of the pool, which it takes as it grows and gives back when it leaves. So memory follows
what is written and not what might be, and nothing is copied when a row leaves. A step gathers a layer's blocks, rows of
similar lengths at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 16  # tokens
QUERY_BLOCK = 256  # queries of a long row at a time: bounds the mask


class PagedCache:
    """The pool of all layers, and what the call that is under way does with it.

    Attributes:
        lengths: own tokens of each row.
        prefix: tokens of the shared prefix.

    Args:
        blocks: blocks of the pool; a row takes one for each :data:`BLOCK` tokens that it has begun.
        longest_prefix: tokens that the shared prefix will have.
        device: of the model.
    """

    def __init__(self, blocks: int, longest_prefix: int, device: torch.device) -> None:
        self.lengths: list[int] = []
        self.prefix = 0
        self._blocks = blocks
        self._longest_prefix = longest_prefix
        self._device = device
        self._free = list(range(blocks))  # a heap
        self._tables: list[list[int]] = []  # the blocks of each row
        self._shared: dict[int, tuple[Tensor, Tensor]] = {}  # (K, P, D) each
        self._pools: dict[int, tuple[Tensor, Tensor]] = {}  # (K, blocks, BLOCK, D) each
        self._kind = ""
        self._new = 0  # tokens a row of the call
        self._rows: Sequence[int] = ()  # rows that the call is about
        self._fresh: Tensor | None = None  # blocks that the call writes to first
        self._places = torch.empty(0)  # where in the pool the call's tokens go
        self._before = torch.empty(0)  # a row: places of its tokens before the call
        self._parts: list[tuple[Tensor, Tensor]] = []  # a step: rows (n,) and their blocks (n, C / BLOCK)
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def can_step(self) -> bool:
        """Whether there are blocks for one more token of every row."""
        return sum(length % BLOCK == 0 for length in self.lengths) <= len(self._free)

    def enter(self, kind: str, tokens: int) -> None:
        """The next call is of this kind: so many tokens of the ``prefix``, of the last ``row``, or a ``step``.

        A step is one token of every row.
        """
        self._kind, self._new = kind, tokens
        self._masks.clear()
        last = len(self.lengths) - 1
        self._rows = {"prefix": (), "row": (last,), "step": range(last + 1)}[kind]
        if kind == "prefix":
            return
        fresh = [block for row in self._rows for block in self._grow(row, tokens)]
        self._fresh = self._tensor(fresh) if fresh else None
        if kind == "row":
            places = [block * BLOCK + i for block in self._tables[-1] for i in range(BLOCK)]
            start = self.lengths[-1]
            self._places, self._before = self._tensor(places[start : start + tokens]), self._tensor(places[:start])
        else:
            pairs = zip(self._tables, self.lengths, strict=True)
            self._places = self._tensor([table[n // BLOCK] * BLOCK + n % BLOCK for table, n in pairs])
            self._parts = self._by_length()

    def _by_length(self) -> list[tuple[Tensor, Tensor]]:
        """The rows and their blocks, in parts in which none has twice the blocks of another.

        A part is computed at once, all its rows as long as the longest.
        """
        alike: dict[int, list[int]] = {}
        for row, table in enumerate(self._tables):
            alike.setdefault(len(table).bit_length(), []).append(row)
        parts = []
        for rows in alike.values():
            most = max(len(self._tables[row]) for row in rows)
            # Behind a shorter row's end stands a block that was written to: unwritten memory could be NaN.
            tables = [self._tables[row] + self._tables[row][:1] * (most - len(self._tables[row])) for row in rows]
            parts.append((self._tensor(rows), self._tensor(tables)))
        return parts

    def leave(self) -> None:
        """The call is over."""
        if self._kind == "prefix":
            self.prefix += self._new
        for row in self._rows:
            self.lengths[row] += self._new

    def add(self) -> None:
        """Take in a row without tokens, behind the others."""
        self.lengths.append(0)
        self._tables.append([])

    def drop(self, row: int) -> None:
        """Forget a row; the last one takes its number."""
        for block in self._tables[row]:
            heapq.heappush(self._free, block)
        self.lengths[row], self._tables[row] = self.lengths[-1], self._tables[-1]
        self.lengths.pop()
        self._tables.pop()

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        cap: float | None,
    ) -> Tensor:
        """Attention of one layer; query (n, H, T, D), key and value (n, K, T, D); (n, T, H, D)."""
        folded = query.unflatten(1, (key.shape[1], -1))  # (n, K, G, T, D): keys are read once and never repeated
        if self._kind == "step":
            result = self._step(layer, folded[:, :, :, 0], key, value, scale, window, cap).unsqueeze(3)
        else:
            before = self._prefix if self._kind == "prefix" else self._row
            result = _causal(folded, *before(layer, key, value), scale, window, cap)
        return result.flatten(1, 2).transpose(1, 2)

    def _prefix(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values (1, K, T, D) of the prefix; all of it so far, (1, K, S, D) each."""
        if layer not in self._shared:
            shared = [new.new_empty(new.shape[1], self._longest_prefix, new.shape[3]) for new in (key, value)]
            self._shared[layer] = shared[0], shared[1]
        until = self.prefix + self._new
        for kept, new in zip(self._shared[layer], (key, value), strict=True):
            kept[:, self.prefix : until] = new[0]
        keys, values = self._shared[layer]
        return keys[None, :, :until], values[None, :, :until]

    def _row(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values (1, K, T, D) of the last row; those of the prefix and the row, (1, K, S, D) each."""
        pools = self._write(layer, key[0], value[0])
        if not self.prefix and not len(self._before):
            return key, value
        parts = []
        for number, (pool, new) in enumerate(zip(pools, (key, value), strict=True)):
            shared = [self._shared[layer][number]] if self.prefix else []
            parts.append(torch.cat([*shared, pool.flatten(1, 2)[:, self._before], new[0]], 1)[None])
        return parts[0], parts[1]

    def _step(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        cap: float | None,
    ) -> Tensor:
        """Each row's new token (n, K, G, D) over the prefix and the row."""
        pools = self._write(layer, key[:, :, 0].transpose(0, 1), value[:, :, 0].transpose(0, 1))
        query = query.transpose(0, 1) * scale  # before the product, which float16 could not hold
        if len(self._parts) == 1:
            return self._step_part(layer, 0, query, pools, window, cap).transpose(0, 1)
        result = query.new_empty(*query.shape[:3], value.shape[3])
        for number, (rows, _) in enumerate(self._parts):
            result[:, rows] = self._step_part(layer, number, query[:, rows], pools, window, cap)
        return result.transpose(0, 1)

    def _step_part(
        self,
        layer: int,
        number: int,
        query: Tensor,
        pools: tuple[Tensor, Tensor],
        window: int | None,
        cap: float | None,
    ) -> Tensor:
        """Scaled queries (K, n, G, D) of some rows; (K, n, G, D). The prefix's keys are read once for all."""
        blocks = self._parts[number][1]
        rows, most = blocks.shape
        own = [
            pool.flatten(2).index_select(1, blocks.flatten()).view(len(pool), rows, most * BLOCK, -1) for pool in pools
        ]  # (K, n, C, D)
        logits = query @ own[0].transpose(2, 3)  # (K, n, G, C)
        if self.prefix:
            keys, values = self._shared[layer]
            shared = query.flatten(1, 2) @ keys.transpose(1, 2)  # (K, n * G, P)
            logits = torch.cat([shared.unflatten(1, (rows, -1)), logits], dim=3)
        logits = logits.float()
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        weights = (logits + self._mask(number, window)).softmax(dim=-1).to(own[1].dtype)
        result = weights[..., self.prefix :] @ own[1]
        if self.prefix:
            result = result + (weights[..., : self.prefix].flatten(1, 2) @ values).unflatten(1, (rows, -1))
        return result

    def _mask(self, number: int, window: int | None) -> Tensor:
        """0 where a new token of a part's rows sees a key, else -inf: (n, 1, P + C)."""
        if (number, window) not in self._masks:
            rows, blocks = self._parts[number]
            seen = self.prefix + blocks.shape[1] * BLOCK
            position = self._tensor(self.lengths)[rows, None] + self.prefix
            distance = position - torch.arange(seen, device=self._device)[None, :]
            unseen = (distance < 0) | (distance >= (window or seen))
            mask = torch.zeros(unseen.shape, device=self._device).masked_fill_(unseen, float("-inf"))
            self._masks[number, window] = mask[:, None, :]
        return self._masks[number, window]

    def _write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the call's keys and values (K, tokens, D) into the layer's pool, which is given back."""
        if layer not in self._pools:
            pools = [new.new_empty(len(new), self._blocks, BLOCK, new.shape[2]) for new in (key, value)]
            self._pools[layer] = pools[0], pools[1]
        for pool, new in zip(self._pools[layer], (key, value), strict=True):
            if self._fresh is not None:
                pool[:, self._fresh] = 0  # a weight of zero times what memory held before could be NaN
            pool.flatten(1, 2)[:, self._places] = new
        return self._pools[layer]

    def _grow(self, row: int, tokens: int) -> list[int]:
        """Give a row blocks for so many more tokens; those that it got."""
        count = blocks_of(self.lengths[row] + tokens) - len(self._tables[row])
        fresh = [heapq.heappop(self._free) for _ in range(count)]
        self._tables[row] += fresh
        return fresh

    def _tensor(self, numbers: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


def blocks_of(tokens: int) -> int:
    """Blocks that so many tokens of a row begin."""
    return -(-tokens // BLOCK)


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, cap: float | None) -> Tensor:
    """Attention of T consecutive tokens (1, K, G, T, D) that end with the last of the keys (1, K, S, D)."""
    heads, groups, length = query.shape[1:4]
    before = key.shape[2] - length
    if not before and cap is None and (window is None or window >= length):
        return scaled_dot_product_attention(
            query.flatten(1, 2), key, value, is_causal=True, scale=scale, enable_gqa=groups > 1
        ).unflatten(1, (heads, groups))
    parts = []
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        first = max(0, before + start - window + 1) if window else 0
        last = before + stop
        position = torch.arange(before + start, last, device=key.device)[:, None]
        distance = position - torch.arange(first, last, device=key.device)[None, :]
        unseen = (distance < 0) | (distance >= (window or last))
        mask = torch.zeros(unseen.shape, dtype=query.dtype, device=key.device).masked_fill_(unseen, float("-inf"))
        mask = mask.repeat(groups, 1)
        rows, keys, values = query[:, :, :, start:stop].flatten(2, 3), key[:, :, first:last], value[:, :, first:last]
        if cap is None:
            block = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
        else:
            logits = cap * torch.tanh((rows * scale @ keys.transpose(2, 3)).float() / cap) + mask
            block = logits.softmax(dim=-1).to(values.dtype) @ values
        parts.append(block.unflatten(2, (groups, -1)))
    return torch.cat(parts, dim=3)
