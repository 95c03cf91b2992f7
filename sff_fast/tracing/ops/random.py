"""Random draws, recorded instead of made."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from sff_fast.boxes import Unrepresentable
from sff_fast.tracing.memory import Piece
from sff_fast.tracing.ops.constants import allocate
from sff_fast.tracing.ops.registry import handles, number_of, ordinary, rounded
from sff_fast.tracing.values import Const, Law, Random, Value


def record_draw(tracer: Any, target: torch.Tensor, op: str, arguments: tuple, law: Law, fresh: bool = False) -> torch.Tensor:
    """Record a draw that fills a tensor.

    Args:
        tracer: The tracer.
        target: The tensor.
        op: Name of the operation.
        arguments: Its numbers.
        law: Distribution of its elements.
        fresh: Whether ``target`` was just allocated for this draw, default False.

    Returns:
        ``target``.
    """
    # On the meta device torch draws nothing and its generator stays where it is.
    device, program = target.device.type, tracer.program
    count, recorded = len(program.draws), program.recorded
    if device == "cpu":
        draw = program.record_at(tracer.place(), op, target, arguments, law)
    else:
        draw = program.record(op, target, arguments, law, "none" if device == "meta" else device)
    value: Value = Const(law.numbers[0]) if law.kind == "normal" and law.numbers[1] == 0 else Random(draw.index, law)
    pieces = tracer.memory.whole(target, value)
    if isinstance(value, Random):
        pieces = [Piece(p.box, value, (1,), 0) for p in pieces]
    else:
        pieces = [p.holding(Const(rounded(value.value, target.dtype))) for p in pieces]
    try:
        if fresh:
            tracer.memory.define(target, pieces, concrete=False)
        else:
            tracer.memory.write(target, pieces)
    except Unrepresentable:
        program.forget(count, recorded)
        raise
    if device == "cpu":
        tracer.drew(draw.index)
    return target


def _law(kind: str, first: float, second: float) -> Law | None:
    """The law of a draw with torch's arguments, or None where torch would refuse them."""
    if not (math.isfinite(first) and math.isfinite(second)):
        return None
    if (kind == "uniform" and first > second) or (kind == "normal" and second < 0):
        return None
    return Law(kind, (first, second))


@handles("uniform_", "normal_")
def draw_in_place(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Draw into a tensor."""
    target = args[0]
    kind = func._schema.name.removeprefix("aten::").removesuffix("_")
    names, defaults = (("from", "to"), (0.0, 1.0)) if kind == "uniform" else (("mean", "std"), (0.0, 1.0))
    given = [args[i + 1] if len(args) > i + 1 else kwargs.get(names[i], defaults[i]) for i in range(2)]
    law = _law(kind, *map(float, given))
    if not ordinary(target) or law is None or not tracer.ambient(kwargs.get("generator")):
        return NotImplemented
    return record_draw(tracer, target, f"{kind}_", tuple(map(float, given)), law)


@handles("rand", "randn", "rand_like", "randn_like")
def draw_new(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Allocate and draw."""
    base = func._schema.name.removeprefix("aten::")
    kind = "normal" if base.startswith("randn") else "uniform"
    dtype = kwargs.get("dtype") or (args[0].dtype if base.endswith("_like") else torch.get_default_dtype())
    if not dtype.is_floating_point or func._overloadname not in ("", "default", "generator"):
        return NotImplemented
    if kwargs.get("layout") not in (None, torch.strided) or not tracer.ambient(kwargs.get("generator")):
        return NotImplemented
    out = allocate("empty_like" if base.endswith("_like") else base, args, kwargs, dtype)
    return record_draw(tracer, out, base, (), Law(kind, (0.0, 1.0)), fresh=True)


@handles("normal")
def draw_normal(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """``torch.normal`` with one mean and one standard deviation."""
    mean = args[0]
    std = args[1] if len(args) > 1 else kwargs.get("std", 1.0)
    tensors = [x for x in (mean, std) if isinstance(x, torch.Tensor)]
    numbers = number_of(tracer, mean), number_of(tracer, std)
    if None in numbers or "out" in kwargs or (law := _law("normal", *numbers)) is None:
        return NotImplemented
    if not tracer.ambient(kwargs.get("generator")):
        return NotImplemented
    if tensors:
        # torch.broadcast_shapes would import sympy at its first call (0.4 s).
        size = np.broadcast_shapes(*(t.shape for t in tensors))
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
        out = torch.empty(size, dtype=dtype, device=tensors[0].device)
    else:
        out = allocate("normal", (args[2],), kwargs, None)
    if not ordinary(out):
        return NotImplemented
    # With tensors among its arguments torch draws around zero and shifts afterwards, which rounds differently.
    op = f"normal.{func._overloadname}" if tensors else "normal"
    return record_draw(tracer, out, op, numbers, law, fresh=True)
