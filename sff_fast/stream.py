"""Random stream version 1: which random number belongs to which element.

Philox4x32-10 with the 64-bit seed as key. The counter of block ``k`` of a named stream is (k low, k high, stream low,
stream high); element ``i`` of a draw takes word ``i mod 4`` of block ``i div 4``. A number therefore depends on (seed,
name, index) alone. The kernels in ``csrc/core`` and :mod:`sff_fast.backends.reference` implement the same stream bit for
bit; ``tests/data/stream_v1.json`` holds known answers.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from sff_fast.errors import ArgumentError

STREAM_VERSION = 1

INIT = b""
ROUND = b"round"
DIRECTION0 = b"direction0"
DIRECTION1 = b"direction1"
NOISE = b"noise"
MASK = b"mask"
PURPOSES = (INIT, ROUND, DIRECTION0, DIRECTION1, NOISE, MASK)

_GOLDEN = 0x9E3779B97F4A7C15


@lru_cache(maxsize=1 << 16)
def stream_id(name: str, purpose: bytes = INIT) -> int:
    """The 64-bit stream of a name.

    Args:
        name: Name of the draw, as the plan has it.
        purpose: What the numbers are for; purposes have disjoint streams. Default the init draw.

    Returns:
        An integer in [0, 2**64).
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=purpose).digest(), "little")


def check_seed(seed: int) -> int:
    """The seed as an integer in [0, 2**64); negative seeds of 64-bit signed range wrap, as torch's do.

    Raises:
        ArgumentError: ``seed`` is no integer, or needs more than 64 bits.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise ArgumentError(f"seed must be an integer, got {seed!r}")
    value = seed.__index__()
    if not -(1 << 63) <= value < 1 << 64:
        raise ArgumentError(f"seed must fit into 64 bits, got {value}")
    return value % (1 << 64)


def rounding_key(seed: int, step: int) -> int:
    """Key of the stochastic rounding of a step; :func:`sff_fast.smooth_` is step 0."""
    return (seed + step * _GOLDEN) % (1 << 64)
