"""Windows of several channels for models that forecast one series at a time."""

from __future__ import annotations

from torch import Tensor


def to_series(values: Tensor) -> Tensor:
    """[B, L, C] -> [B * C, L]: every channel a series of its own."""
    return values.transpose(1, 2).reshape(-1, values.shape[1])


def from_series(values: Tensor, channels: int) -> Tensor:
    """[B * C, ..., H] -> [B, ..., H, C], the reverse of :func:`to_series`."""
    return values.unflatten(0, (-1, channels)).movedim(1, -1)
