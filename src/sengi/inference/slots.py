"""Keys and values of the rows that are being written.

Shapes: n rows that are being written, T tokens of a call, P tokens of the shared prefix, C tokens of the longest
row after the prefix, H query heads, K key/value heads, G = H / K, D head size.

Rows that begin alike (few-shot examples, a system prompt) share one copy of the prefix's keys and values. What a row
has of its own lies in a *slot*: row i of one buffer a layer. Rows have different lengths and come and go on their
own: nothing is padded on the left, nothing is copied from step to step, and a finished row leaves at once, its slot
taken by the last row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

GROWTH = 128  # tokens that a buffer grows by, so that memory follows what was written and not what might be
QUERY_BLOCK = 256  # queries of a long row at a time: bounds the mask


class Slots:
    """The buffers of all layers, and what the call that is under way does with them.

    Attributes:
        lengths: own tokens of each row.
        prefix: tokens of the shared prefix.

    Args:
        count: most rows at a time.
        device: of the model.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.lengths: list[int] = []
        self.prefix = 0
        self._count = count
        self._device = device
        self._shared: dict[int, tuple[Tensor, Tensor]] = {}  # (K, P, D) each
        self._own: dict[int, tuple[Tensor, Tensor]] = {}  # (rows, K, capacity, D) each
        self._kind = ""
        self._need = 0  # own tokens of the longest row after the call
        self._places: tuple[Tensor, Tensor] | None = None
        self._masks: dict[int | None, Tensor | None] = {}

    def enter(self, kind: str, tokens: int) -> None:
        """The next call is of this kind: ``prefix``, ``row`` (a new one) or ``step`` (one token a row)."""
        self._kind = kind
        self._need = tokens
        self._masks.clear()
        if kind == "step":
            self._need += max(self.lengths)
            rows = torch.arange(len(self.lengths), device=self._device)
            self._places = rows, torch.tensor(self.lengths, device=self._device)

    def drop(self, slot: int) -> None:
        """Forget a row."""
        length = self.lengths.pop()
        last = len(self.lengths)
        if slot == last:
            return
        self.lengths[slot] = length
        for pair in self._own.values():
            for buffer in pair:
                buffer[slot, :, :length] = buffer[last, :, :length]

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
        elif self._kind == "prefix":
            self._shared[layer] = key[0].clone(), value[0].clone()
            result = _causal(folded, key, value, scale, window, cap)
        else:
            row = len(self.lengths)
            for buffer, new in zip(self._buffers(layer, key, value), (key, value), strict=True):
                buffer[row, :, : new.shape[2]] = new[0]
            if self.prefix:
                key, value = (
                    torch.cat([shared, new[0]], 1).unsqueeze(0)
                    for shared, new in zip(self._shared[layer], (key, value), strict=True)
                )
            result = _causal(folded, key, value, scale, window, cap)
        return result.flatten(1, 2).transpose(1, 2)

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
        """Each row's new token (n, K, G, D) over the prefix and the row; the prefix's keys are read once for all."""
        assert self._places is not None
        rows = len(self.lengths)
        own = []
        for buffer, new in zip(self._buffers(layer, key, value), (key, value), strict=True):
            buffer[self._places[0], :, self._places[1]] = new[:, :, 0]
            own.append(buffer[:rows, :, : self._need])
        logits = query @ own[0].transpose(2, 3)  # (n, K, G, C)
        if self.prefix:
            keys, values = self._shared[layer]
            shared = query.transpose(0, 1).flatten(1, 2) @ keys.transpose(1, 2)  # (K, n * G, P)
            logits = torch.cat([shared.unflatten(1, (rows, -1)).transpose(0, 1), logits], dim=3)
        logits = logits.float() * scale
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        mask = self._mask(window)
        if mask is not None:
            logits = logits + mask
        weights = logits.softmax(dim=-1).to(value.dtype)
        result = weights[..., self.prefix :] @ own[1]
        if self.prefix:
            seen = weights[..., : self.prefix].transpose(0, 1).flatten(1, 2) @ values  # (K, n * G, D)
            result = result + seen.unflatten(1, (rows, -1)).transpose(0, 1)
        return result

    def _mask(self, window: int | None) -> Tensor | None:
        """0 where a row's new token sees a key, else -inf: (n, 1, 1, P + C); None where all see all."""
        if window not in self._masks:
            assert self._places is not None
            position = self._places[1][:, None] + self.prefix
            distance = position - torch.arange(self.prefix + self._need, device=self._device)[None, :]
            unseen = (distance < 0) | (distance >= (window or self.prefix + self._need))
            mask = torch.zeros(unseen.shape, device=self._device).masked_fill_(unseen, float("-inf"))
            self._masks[window] = mask[:, None, None, :] if bool(unseen.any()) else None
        return self._masks[window]

    def _buffers(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's buffers, long enough for what the call adds."""
        old = self._own.get(layer)
        if old is not None and old[0].shape[2] >= self._need:
            return old
        capacity = -(-self._need // GROWTH) * GROWTH
        grown = []
        for number, new in enumerate((key, value)):
            # Zeros: a weight of zero times what memory held before could be NaN.
            buffer = new.new_zeros(self._count, new.shape[1], capacity, new.shape[3])
            if old is not None:
                buffer[:, :, : old[number].shape[2]] = old[number]
            grown.append(buffer)
        self._own[layer] = grown[0], grown[1]
        return self._own[layer]


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
            logits = cap * torch.tanh((rows @ keys.transpose(2, 3)).float() * (scale / cap)) + mask
            block = logits.softmax(dim=-1).to(values.dtype) @ values
        parts.append(block.unflatten(2, (groups, -1)))
    return torch.cat(parts, dim=3)
