"""Memory that nothing is drawn into: uninitialised, or of known values."""

from __future__ import annotations

from typing import Any

import torch

from sff_fast.boxes import Box
from sff_fast.tracing.memory import uniform_piece
from sff_fast.tracing.ops.registry import handles, number_of, ordinary, rounded
from sff_fast.tracing.values import Const, Uninitialised


@handles("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted")
def empty(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Allocate; nothing is written."""
    out = func(*args, **kwargs)
    if not ordinary(out):
        return out
    tracer.memory.define(out, tracer.memory.whole(out, Uninitialised()), concrete=True)
    return out


CONSTANTS = {"zeros": 0.0, "ones": 1.0, "full": None}


def allocate(base: str, args: tuple, kwargs: dict, dtype: torch.dtype | None) -> torch.Tensor:
    """The uninitialised tensor that a factory would fill; ``base`` is its name."""
    kwargs = {k: v for k, v in kwargs.items() if k in ("dtype", "layout", "device", "pin_memory", "memory_format")}
    if dtype is not None:
        kwargs["dtype"] = dtype
    if base.endswith("_like"):
        return torch.empty_like(args[0], **kwargs)
    if base.startswith("new_"):
        return args[0].new_empty(args[1], **{k: v for k, v in kwargs.items() if k != "memory_format"})
    return torch.empty(args[0], **kwargs)


@handles("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full")
def constant(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Allocate memory of one value."""
    base = func._schema.name.removeprefix("aten::")
    value = CONSTANTS[base.removeprefix("new_").removesuffix("_like")]
    dtype = kwargs.get("dtype")
    if value is None:
        value = args[2] if base == "new_full" else args[1]
        if not isinstance(value, (int, float)):
            return NotImplemented
        if base == "full" and dtype is None and not isinstance(value, float):
            return NotImplemented
    if dtype is None:
        dtype = torch.get_default_dtype() if base in CONSTANTS else args[0].dtype
    if not dtype.is_floating_point or func._overloadname in ("out", "names", "names_out"):
        return NotImplemented
    if kwargs.get("layout") not in (None, torch.strided):
        return NotImplemented
    value = rounded(value, dtype)
    out = allocate(base, args, kwargs, dtype)
    tracer.memory.define(out, tracer.memory.whole(out, Const(value)), concrete=False)
    return out


@handles("fill_", "zero_")
def fill(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Write one value."""
    target = args[0]
    if not ordinary(target):
        return NotImplemented
    value = 0.0 if func._schema.name == "aten::zero_" else number_of(tracer, args[1])
    if value is None:
        return NotImplemented
    tracer.memory.write(target, tracer.memory.whole(target, Const(rounded(value, target.dtype))))
    return target


@handles("eye")
def eye(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Ones on the diagonal, zeros elsewhere."""
    rows = args[0]
    columns = args[1] if len(args) > 1 else rows
    if "out" in kwargs:
        out = kwargs["out"]
        if tuple(out.shape) != (rows, columns) or not ordinary(out):
            return NotImplemented
    else:
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        if not dtype.is_floating_point or kwargs.get("layout") not in (None, torch.strided):
            return NotImplemented
        out = allocate("eye", ((rows, columns),), kwargs, dtype)
        tracer.memory.define(out, tracer.memory.whole(out, Uninitialised()), concrete=True)
    if out.numel():
        diagonal = Box((min(rows, columns),), (columns + 1,), 0)
        tracer.memory.write(out, [*tracer.memory.whole(out, Const(0.0)), uniform_piece(diagonal, Const(1.0))])
    return out


@handles("lift_fresh")
def lift_fresh(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """A tensor that was just made from Python numbers; one number is as good as the argument of a fill."""
    out = func(*args, **kwargs)
    if ordinary(out) and out.numel() == 1 and out.device.type == "cpu" and tracer.memory.find(out) is None:
        tracer.memory.define(out, tracer.memory.whole(out, Const(out.item())), concrete=True)
    return out
