"""Copies: between dtypes, of whole storages, side by side, repeated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sff_fast.tracing.ops.registry import handles, ordinary, rounded
from sff_fast.tracing.values import Const, Data, Random, Uninitialised, Value


def _cast(value: Value, dtype: torch.dtype, source: torch.dtype) -> Value:
    """A value after a copy from one dtype to another."""
    if dtype == source:
        return value
    if isinstance(value, Const):
        return Const(rounded(value.value, dtype))
    return value.after(("to", dtype)) if isinstance(value, Random) else value


def copy_parts(tracer: Any, name: str, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], run: Callable[[], Any]) -> Any:
    """Copy tensors into parts of one storage: recorded where all values have names, else run for real.

    Args:
        tracer: The tracer.
        name: Name of the operation.
        parts: ``(target, source)`` of equal shape; nothing overlaps.
        run: Runs the operation for real; returns whether the targets of ``parts`` are what it wrote to.
    """
    memory = tracer.memory
    todo = []
    for target, source in parts:
        pieces = [p.holding(_cast(p.value, target.dtype, source.dtype)) for p in memory.resolve(source)]
        todo.append((target, source, pieces))
    if any(isinstance(p.value, Data) for _, _, pieces in todo for p in pieces):
        for target, source, _ in todo:
            memory.force(source)
            memory.force(target)
        run()
        for target, _, pieces in todo:
            memory.write(target, pieces, executed=True)
    else:
        for target, _, pieces in todo:
            memory.write(target, pieces)


def copied(tracer: Any, source: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of a tensor on the CPU."""
    out = torch.empty(source.shape, dtype=source.dtype)
    tracer.memory.define(out, tracer.memory.whole(out, Uninitialised()), concrete=True)
    copy_parts(tracer, "clone", [(out, source)], lambda: out.copy_(source))
    return out


@handles("clone", "_to_copy")
def copy_new(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Copy into new memory."""
    source = args[0]
    if source.device.type == "meta" or kwargs.get("layout") not in (None, torch.strided):
        return NotImplemented
    dtype, device = kwargs.get("dtype") or source.dtype, kwargs.get("device") or source.device
    if not ordinary(source) or not dtype.is_floating_point or torch.device(device).type == "meta":
        return NotImplemented
    form = kwargs.get("memory_format") or torch.preserve_format
    out = torch.empty_like(source, dtype=dtype, device=device, memory_format=form)
    tracer.memory.define(out, tracer.memory.whole(out, Uninitialised()), concrete=True)
    copy_parts(tracer, "clone", [(out, source)], lambda: out.copy_(source))
    return out


@handles("copy_")
def copy_in_place(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Copy into memory that is there."""
    target, source = args[:2]
    if _copies_bytes(tracer, target, source):
        if tracer.memory.alias(target, source):
            func(*args, **kwargs)
        return target
    if "meta" in (target.device.type, source.device.type) or not ordinary(target, source):
        return NotImplemented
    copy_parts(tracer, "copy_", [(target, source.expand(target.shape))], lambda: target.copy_(source))
    return target


def _copies_bytes(tracer: Any, target: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether a copy is that of a whole storage, as ``copy.deepcopy`` of a tensor does it."""
    known = tracer.memory.find(source)
    return (
        known is not None
        and source.dtype == target.dtype == torch.uint8
        and known.dtype != torch.uint8
        and source.dim() == target.dim() == 1
        and source.numel() == source.untyped_storage().nbytes() == target.numel() == target.untyped_storage().nbytes()
    )


@handles("cat", "stack")
def concatenate(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Copy tensors side by side into new memory."""
    tensors = list(args[0])
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if "out" in kwargs or not ordinary(*tensors) or any(t.device.type == "meta" for t in tensors):
        return NotImplemented
    if func._schema.name == "aten::stack":
        dim = dim + tensors[0].dim() + 1 if dim < 0 else dim
        tensors = [t.unsqueeze(dim) for t in tensors]
    else:
        tensors = [t for t in tensors if t.shape != (0,)] or tensors[:1]
        dim = dim + tensors[0].dim() if dim < 0 else dim
    shapes = {tuple(n for i, n in enumerate(t.shape) if i != dim) for t in tensors}
    if len(shapes) != 1 or len({t.device for t in tensors}) != 1 or tensors[0].dim() == 0:
        return NotImplemented
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    out = torch.empty(shape, dtype=dtype, device=tensors[0].device)
    tracer.memory.define(out, tracer.memory.whole(out, Uninitialised()), concrete=True)
    begins = [sum(t.shape[dim] for t in tensors[:i]) for i in range(len(tensors))]
    parts = [(out.narrow(dim, begin, t.shape[dim]), t) for begin, t in zip(begins, tensors)]
    copy_parts(tracer, "cat", parts, lambda: [target.copy_(source) for target, source in parts])
    return out


@handles("repeat")
def repeat(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Copy a tensor several times into new memory."""
    source, times = args[:2]
    if not ordinary(source) or source.device.type == "meta" or len(times) < source.dim():
        return NotImplemented
    shape = (1,) * (len(times) - source.dim()) + tuple(source.shape)
    out = torch.empty([n * r for n, r in zip(shape, times)], dtype=source.dtype, device=source.device)
    if out.numel() == 0:
        return out
    tracer.memory.define(out, tracer.memory.whole(out, Uninitialised()), concrete=True)
    split = [x for r, n in zip(times, shape) for x in (r, n)]
    view = source
    for _ in range(len(times) - source.dim()):
        view = view.unsqueeze(0)
    for i in range(len(times)):
        view = view.unsqueeze(2 * i)
    target = out.view(split)
    copy_parts(tracer, "repeat", [(target, view.expand(split))], lambda: target.copy_(view.expand(split)))
    return out
