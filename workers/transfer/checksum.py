"""Checksums of tensors, computed where they lie and equal on every device.

Words are summed by their position modulo 256, and again modulo 255: two additions a word, about as
fast as memory is read. Two positions of a chunk that agree in both remainders are the same. The
sums, far fewer than the words, are then weighed by odd numbers that depend on the position, as
halves of 32 bits: a difference in the highest bits of whole words would vanish modulo 2^64 where
such numbers are subtracted. Integers wrap around, so the order of additions does not matter.

Found are accidents, not attacks: the sums are linear.
"""

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

_WIDTHS = (256, 255)
_CHUNK_WORDS = 256 * 255
_CHUNK_BYTES = 8 * _CHUNK_WORDS
"""510 KiB: what a core's cache holds, so that memory is read once for both sums."""


def checksum(tensor: Tensor) -> int:
    """64 bits of a tensor's bytes, whatever its dtype, strides and device."""
    return int(_sum(tensor))


def checksums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """`checksum` by name; what is on a device is waited for once, not tensor by tensor."""
    found = {name: _sum(tensor) for name, tensor in tensors}
    values = torch.stack(list(found.values())).tolist() if found else []
    return dict(zip(found, values, strict=True))


@torch.no_grad()
def _sum(tensor: Tensor) -> Tensor:
    """Int64 scalar on the tensor's device."""
    # A single element counts as contiguous whatever its stride, and cannot be seen as bytes then.
    elements = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,))
    flat = elements.view(torch.uint8)
    num_bytes = flat.numel()
    num_chunks = num_bytes // _CHUNK_BYTES
    whole, rest = flat.split([num_chunks * _CHUNK_BYTES, num_bytes - num_chunks * _CHUNK_BYTES])
    if whole.storage_offset() % 8:  # int64 views begin at multiples of 8 bytes
        whole = whole.clone()
    padded = flat.new_zeros(_CHUNK_BYTES)
    padded[: rest.numel()] = rest
    chunks = whole.view(torch.int64).view(num_chunks, _CHUNK_WORDS)
    # The cache of a CPU holds one chunk; a GPU is faster with all of them at once.
    blocks = chunks.split(1) if flat.device.type == "cpu" else [chunks]
    folded = [_fold(block) for block in (*blocks, padded.view(torch.int64).view(1, -1))]
    halves = torch.cat(folded).view(torch.int32).long()
    rows = (halves * _weights(halves.shape[1], 1, flat.device)).sum(1)
    total = (rows * _weights(num_chunks + 1, 2, flat.device)).sum()
    return total + num_bytes  # what was padded is not the same as zeros


def _fold(chunks: Tensor) -> Tensor:
    """Int64 [N, 256 + 255]: sums by position modulo each of them; chunks: [N, words]."""
    shapes = [(len(chunks), _CHUNK_WORDS // width, width) for width in _WIDTHS]
    return torch.cat([chunks.view(shape).sum(1) for shape in shapes], dim=1)


@cache
def _weights(count: int, stream: int, device: torch.device) -> Tensor:
    """`count` odd numbers as if drawn by chance (splitmix64); another `stream`, others."""
    z = (torch.arange(count, device=device) + (stream << 40)) * -7046029254386353131
    z = (z ^ _shifted(z, 30)) * -4658895280553007687
    z = (z ^ _shifted(z, 27)) * -7723592293110705685
    return (z ^ _shifted(z, 31)) | 1


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
