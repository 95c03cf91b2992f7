"""States in eight bits: the maps of csrc/core/quantize.h in plain torch.

Code ``k`` of a block of 256 elements stands for ``scale * map(k)`` with ``scale`` the largest magnitude in the block and
``map(k) = (y(k) - 1) / T``, where ``y(k)`` is the float32 number whose bits are those of 1.0 plus ``k << shift``: a piecewise
linear logarithm. Signed: bit 7 is the sign, T = 247, ``|error| <= 2**-5 * (|x| + scale / 247)``. Unsigned: T = 2**31 * 1.875
- 1, ``|error| <= 2**-4 * (x + scale * 2**-30)``. Both hold 0 and 1 exactly, and encoding a decoded block gives its codes
and its scale again.
"""

from __future__ import annotations

import torch

from sff_fast.backends.reference import fused

from .task import BLOCK

_ONE = 0x3F800000
_MASK = 0xFFFFFFFF
SIGNED_TOP, UNSIGNED_TOP = 247.0, 4026531840.0
SIGNED_UNIT, UNSIGNED_UNIT = float.fromhex("0x1.0953f4p-8"), float.fromhex("0x1.111112p-32")
SMALLEST_SCALE = 2.0**-90
"""Blocks whose largest magnitude is below count as zero."""

HALF = 1 << 31
"""The dither of rounding to nearest, as a fraction of 2**32."""


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32).long() & _MASK


def _number(bits: torch.Tensor) -> torch.Tensor:
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)


def _map(codes: torch.Tensor, signed: bool) -> torch.Tensor:
    unit = SIGNED_UNIT if signed else UNSIGNED_UNIT
    k = codes.long()
    y = _number(((k & 127) << 19 if signed else k << 20) + _ONE)
    return fused(y, unit, -unit)


def _blocks(x: torch.Tensor) -> torch.Tensor:
    """A flat tensor in rows of one block, the last one filled with zeros."""
    missing = -x.numel() % BLOCK
    return torch.cat([x, x.new_zeros(missing)]).view(-1, BLOCK)


def decode(codes: torch.Tensor, scales: torch.Tensor, signed: bool) -> torch.Tensor:
    """Codes to float32.

    Args:
        codes: uint8, flat.
        scales: float32, one a block of 256 codes.
        signed: Which map.

    Returns:
        float32, as many as codes.
    """
    rows = _blocks(codes)
    x = _map(rows, signed) * scales[:, None]
    if signed:
        x = torch.where(rows >= 128, -x, x)
    return x.reshape(-1)[: codes.numel()]


def encode(x: torch.Tensor, signed: bool, dither: torch.Tensor | int = HALF) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 to codes.

    Args:
        x: float32, flat.
        signed: Which map; the unsigned one takes no negative numbers.
        dither: int64 in [0, 2**32) an element, of the unsigned map; the default rounds to nearest.

    Returns:
        Codes (uint8) and scales (float32, one a block). A block with a NaN or an infinity has the scale NaN.
    """
    rows = _blocks(x)
    scales = rows.abs().amax(dim=1)
    scales = torch.where(scales < SMALLEST_SCALE, torch.zeros_like(scales), scales)
    scales = torch.where(torch.isfinite(rows).all(dim=1), scales, torch.full_like(scales, torch.nan))
    usable = (scales > 0)[:, None]
    top = torch.full_like(scales, SIGNED_TOP if signed else UNSIGNED_TOP)  # a number / tensor would round twice
    factor = torch.where(usable, (top / scales)[:, None], 0.0)
    tame = torch.where(usable, rows, 0.0)
    y = fused(tame.abs(), factor, 1.0)
    if signed:
        k = ((_bits(y) + (1 << 18) - _ONE) >> 19) & 127
        k = torch.where(torch.signbit(rows), k + 128, k)
    else:
        y = torch.where(tame > 0, y.clamp(min=1.125), y).clamp(max=UNSIGNED_TOP)
        if isinstance(dither, torch.Tensor):
            dither = _blocks(dither)
        k = ((_bits(y) + (dither >> 12) - _ONE) >> 20) & 255
    codes = torch.where(usable, k, 0).to(torch.uint8)
    return codes.reshape(-1)[: x.numel()], scales
