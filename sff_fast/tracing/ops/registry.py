"""The table of handlers, and what several of them ask for.

A handler takes ``(tracer, func, args, kwargs)`` and returns the operation's result, or NotImplemented (or raises
:class:`Unrepresentable`) to have it run for real.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Handler = Callable[[Any, Any, tuple, dict], Any]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler under the names of operations."""

    def register(handler: Handler) -> Handler:
        for name in names:
            key = name if name == "pointwise" else f"aten::{name}"
            assert key not in HANDLERS, f"{key} has a handler already"
            HANDLERS[key] = handler
        return handler

    return register


def ordinary(*tensors: torch.Tensor) -> bool:
    """Whether tensors have real floating-point elements in strided memory, on any device."""
    return all(t.is_floating_point() and t.layout == torch.strided and not t.is_quantized for t in tensors)


def rounded(value: float, dtype: torch.dtype) -> float:
    """A number as memory of a dtype holds it."""
    return torch.full((), value, dtype=dtype, device="cpu").item()


def number_of(tracer: Any, value: Any) -> float | None:
    """The number that a scalar or a tensor of one known value stands for."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.device.type == "meta":
        return None
    known = tracer.memory.constant(value)
    if known is not None:
        return known
    if value.numel() == 1:
        taint = tracer.memory.taint(value)
        if not (taint.draws or taint.uninitialised):
            tracer.memory.force(value)
            tracer.read_external |= taint.external
            return value.item()
    return None
