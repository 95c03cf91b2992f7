"""Elementwise functions: exact for constants, by name for draws, for real for everything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sff_fast.boxes import Unrepresentable
from sff_fast.tracing.ops.registry import handles, number_of, ordinary, rounded
from sff_fast.tracing.values import CLEAN, Const, Data, Operation, Random, Uninitialised, Value


def _operation(name: str, main_first: bool, scalar: float | None, alpha: float) -> tuple[Operation, ...] | None:
    """Operations on the main operand that an arithmetic function stands for, or None where it is none of them."""
    if name in ("neg", "erfinv") and scalar is None:
        return ((name,),)
    if scalar is None:
        return None
    if name == "mul":
        return (("mul", scalar),)
    if name == "div":
        return (("div", scalar),) if main_first else None
    factor = (alpha,) if alpha != 1 else ()  # torch rounds ``x + alpha * y`` as one operation: it is kept as one
    if name == "add":
        return (("add", scalar, *factor),) if main_first or not factor else (("radd", scalar, *factor),)
    if name == "sub":
        return (("sub" if main_first else "rsub", scalar, *factor),)
    if name == "rsub":
        return (("rsub", scalar, *factor),) if main_first else None
    return None


@handles("pointwise")
def pointwise(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """An elementwise function: exact for constants, by name for draws, for real for everything else."""
    name = func._schema.name.removeprefix("aten::")
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.removesuffix("_") if in_place else name
    if func._overloadname.endswith(("out", "_mode", "mode")) or any(isinstance(v, torch.Tensor) for v in kwargs.values()):
        return NotImplemented
    tensors = [(i, a) for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
    plain = bool(tensors) and ordinary(*(t for _, t in tensors)) and all(t.device.type != "meta" for _, t in tensors)
    if not plain or len(func._schema.returns) != 1:
        return NotImplemented
    numbers: dict[int, float] = {}
    if len(tensors) > 1:
        found = {i: number_of(tracer, t) for i, t in tensors}
        open_operands = [i for i, _ in tensors if found[i] is None]
        if len(open_operands) > 1:
            return NotImplemented
        largest = max(tensors, key=lambda item: (item[1].numel(), -item[0]))[0]
        main_at = open_operands[0] if open_operands else largest
        numbers = {i: found[i] for i, _ in tensors if i != main_at}
    else:
        main_at = tensors[0][0]
    main = args[main_at]
    shape = np.broadcast_shapes(*(t.shape for _, t in tensors))

    def on(value: float) -> torch.Tensor:
        """The function of single elements, with the dtypes and the ranks that decide how torch promotes types."""
        elements = {i: torch.full((1,) * t.dim(), numbers.get(i, value), dtype=t.dtype) for i, t in tensors}
        return func(*(elements.get(i, a) for i, a in enumerate(args)), **kwargs)

    dtype = on(1.0).dtype
    if not dtype.is_floating_point or (in_place and args[0].shape != shape):
        return NotImplemented
    others = [a for i, a in enumerate(args) if i != main_at]
    scalar = numbers.get(next(iter(numbers), -1))
    if not numbers and others and isinstance(others[0], (int, float)):
        scalar = float(others[0])
    alpha = kwargs.get("alpha", 1)
    if name == "clamp":
        bounds = args[1] if len(args) > 1 else kwargs.get("min"), args[2] if len(args) > 2 else kwargs.get("max")
        steps = (("clamp", *bounds),) if all(b is None or isinstance(b, (int, float)) for b in bounds) else None
    elif isinstance(alpha, (int, float)) and len(args) <= 2:
        steps = _operation(name, main_at == 0, scalar, float(alpha))
    else:
        steps = None

    def after(value: Value) -> Value:
        if isinstance(value, Const):
            return Const(on(value.value).item())
        if isinstance(value, Random):
            new: Value | None = value
            for step in (*((("to", dtype),) if dtype != main.dtype else ()), *(steps or ())):
                new = new.after(step) if isinstance(new, Random) else None
            if steps is not None and new is not None:
                return Const(rounded(new.value, dtype)) if isinstance(new, Const) else new
            return Data(value.taint().through(name))
        return Data(value.origin.through(name)) if isinstance(value, Data) else value

    memory = tracer.memory
    pieces = [p.holding(after(p.value)) for p in memory.resolve(main.expand(shape))]
    executed = any(isinstance(p.value, Data) for p in pieces)
    out = args[0] if in_place else None
    if executed:
        for _, tensor in tensors:
            memory.force(tensor)
        out = func(*args, **kwargs)
    elif out is None:
        like = main.expand(shape)
        out = torch.empty_like(like, dtype=dtype)
    if not in_place:
        memory.define(out, memory.whole(out, Uninitialised()), concrete=True)
    try:
        memory.write(out, pieces, executed=executed)
    except Unrepresentable:
        if not executed:
            raise
        taint = CLEAN
        for piece in pieces:
            taint = taint | piece.value.taint()
        memory.wrote(out, taint)
    return out
