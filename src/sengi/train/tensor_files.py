"""Tensors as the pieces of a safetensors file, without a second copy of them.

``safetensors.torch.save`` copies every tensor twice into one block of bytes and holds Python's global lock meanwhile: a
thread that saves two gigabytes would stop the training beside it for a second. Here the file is a small header and
views of the tensors' own memory. The bytes are the same (a test compares them).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

JOINED = 1 << 20  # bytes up to which pieces are put together, so that a thousand norms are not a thousand writes
# in the order in which the library puts types into a file
_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def safetensors_pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The content of a safetensors file, in order.

    Args:
        tensors: name -> contiguous tensor on the CPU. They must not change until the pieces are used.
        metadata: what the header says beside them.
    """
    place = {dtype: number for number, dtype in enumerate(_NAMES)}
    names = sorted(tensors, key=lambda name: (place[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield from _joined([len(text).to_bytes(8, "little") + text, *(_bytes_of(tensors[name]) for name in names)])


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _joined(pieces: list[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The same bytes in fewer pieces: small neighbours put together, large ones as they are."""
    small: list[bytes | memoryview] = []
    size = 0
    for piece in pieces:
        if small and size + len(piece) > JOINED:
            yield b"".join(small)
            small, size = [], 0
        small.append(piece)
        size += len(piece)
        if size > JOINED:  # it is alone
            yield piece
            small, size = [], 0
    if small:
        yield b"".join(small)
