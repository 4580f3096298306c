"""Codes of 2, 3, 4 or 8 bits packed into bytes, a whole number of bytes per group.

Codes are split into *planes* of a power-of-two width: 3-bit codes are a 2-bit plane and a 1-bit
plane, all others one plane. In a plane of width p a byte holds 8/p codes, taken from as many equal
consecutive parts of the group, so that unpacking is one shift and mask per part and the parts lie
next to each other in the result: no interleaving.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}
"""Widths of the planes of a code, low bits first."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes [..., group_size] (uint8, below 2**bits) into [..., group_size * bits / 8]."""
    planes = []
    shift = 0
    for width in PLANES[bits]:
        plane = (codes >> shift) & (2**width - 1)
        planes.append(_pack_plane(plane, width))
        shift += width
    return torch.cat(planes, dim=-1) if len(planes) > 1 else planes[0]


def unpack(packed: Tensor, bits: int, out: Tensor) -> Tensor:
    """Undo `pack`: bytes [..., group_size * bits / 8] -> codes [..., group_size] in `out`."""
    if PLANES[bits] == (8,):
        return out.copy_(packed)
    start, shift = 0, 0
    for width in PLANES[bits]:
        num_bytes = out.shape[-1] * width // 8
        plane = packed[..., start : start + num_bytes]
        values = torch.empty_like(plane, memory_format=torch.contiguous_format)
        targets = out.split(num_bytes, dim=-1)
        for part, target in enumerate(targets):
            # Bits first, for all groups in one run: where the parts belong they are too short to
            # be vectorized.
            torch.bitwise_right_shift(plane, part * width, out=values)
            if part < len(targets) - 1:  # above the last one there is nothing
                values.bitwise_and_(2**width - 1)
            if shift:
                target += values << shift
            else:
                target.copy_(values)
        start += num_bytes
        shift += width
    return out


def _pack_plane(plane: Tensor, width: int) -> Tensor:
    parts = plane.unflatten(-1, (8 // width, -1)).unbind(-2)
    packed = torch.zeros_like(parts[0])
    for index, part in enumerate(parts):
        packed |= part << (index * width)
    return packed
