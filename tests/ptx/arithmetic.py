"""Arithmetic that numpy lacks: fused multiply-adds, and conversions as a GPU does them.

Source: Boldo & Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

NAN32 = np.uint32(0x7FFFFFFF)
"""What every fp32 instruction of a GPU makes of a NaN."""


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Fp32 ``a * b + c``, rounded once: the product is exact in fp64, the sum rounded to odd before it is rounded to fp32."""
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    inexact = np.isfinite(total) & np.isfinite(error) & (error != 0) & ((total.view(np.int64) & 1) == 0)
    odd = np.where(inexact, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return odd.astype(np.float32)


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Fp64 ``a * b + c``, rounded once, by exact rational arithmetic."""
    return np.array([_exact(float(x), float(y), float(z)) for x, y, z in zip(a, b, c)], np.float64)


def _exact(a: float, b: float, c: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c if a * b == 0 else 0.0
    try:
        return exact.numerator / exact.denominator
    except OverflowError:
        return math.copysign(math.inf, exact)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of fp32 numbers as bfloat16, to nearest even; NaN is 0x7fff."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def to_float16(x: np.ndarray) -> np.ndarray:
    """Bits of fp32 numbers as float16, to nearest even; NaN is 0x7fff."""
    return np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))


def to_integer(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers without a fraction to integers: what does not fit becomes the nearest that does, NaN zero."""
    limits = np.iinfo(dtype)
    numbers = (0 if math.isnan(v) else int(min(max(v, float(limits.min)), float(limits.max))) for v in x.tolist())
    return np.array([min(max(v, limits.min), limits.max) for v in numbers], dtype)
