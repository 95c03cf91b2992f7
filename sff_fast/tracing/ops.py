"""Handlers of the operations that the tracer records instead of running.

A handler takes ``(tracer, func, args, kwargs)`` and returns the operation's result, or NotImplemented (or raises
:class:`Unrepresentable`) to have it run for real.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sff_fast.boxes import Box, Unrepresentable
from sff_fast.tracing.memory import Piece, uniform_piece
from sff_fast.tracing.values import CLEAN, Const, Data, Law, Operation, Random, Uninitialised, Value

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


def _ordinary(*tensors: torch.Tensor) -> bool:
    """Whether tensors have real floating-point elements in strided memory, on any device."""
    return all(t.is_floating_point() and t.layout == torch.strided and not t.is_quantized for t in tensors)


def _rounded(value: float, dtype: torch.dtype) -> float:
    """A number as memory of a dtype holds it."""
    return torch.full((), value, dtype=dtype, device="cpu").item()


def _number(tracer: Any, value: Any) -> float | None:
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
        if not (taint.draws or taint.random or taint.uninitialised):
            tracer.memory.force(value)
            tracer.read_external |= taint.external
            return value.item()
    return None


# ---------------------------------------------------------------------- memory without values
@handles("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted")
def empty(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Allocate; nothing is written."""
    out = func(*args, **kwargs)
    if not _ordinary(out):
        return out
    tracer.memory.define(out, tracer.memory.whole(out, Uninitialised()), concrete=True)
    return out


# ---------------------------------------------------------------------- constants
CONSTANTS = {"zeros": 0.0, "ones": 1.0, "full": None}


def _allocate(base: str, args: tuple, kwargs: dict, dtype: torch.dtype | None) -> torch.Tensor:
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
    value = _rounded(value, dtype)
    out = _allocate(base, args, kwargs, dtype)
    tracer.memory.define(out, tracer.memory.whole(out, Const(value)), concrete=False)
    return out


@handles("fill_", "zero_")
def fill(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Write one value."""
    target = args[0]
    if not _ordinary(target):
        return NotImplemented
    value = 0.0 if func._schema.name == "aten::zero_" else _number(tracer, args[1])
    if value is None:
        return NotImplemented
    tracer.memory.write(target, tracer.memory.whole(target, Const(_rounded(value, target.dtype))))
    return target


@handles("eye")
def eye(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Ones on the diagonal, zeros elsewhere."""
    rows = args[0]
    columns = args[1] if len(args) > 1 else rows
    if "out" in kwargs:
        out = kwargs["out"]
        if tuple(out.shape) != (rows, columns) or not _ordinary(out):
            return NotImplemented
    else:
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        if not dtype.is_floating_point or kwargs.get("layout") not in (None, torch.strided):
            return NotImplemented
        out = _allocate("eye", ((rows, columns),), kwargs, dtype)
        tracer.memory.define(out, tracer.memory.whole(out, Uninitialised()), concrete=True)
    if out.numel():
        diagonal = Box((min(rows, columns),), (columns + 1,), 0)
        tracer.memory.write(out, [*tracer.memory.whole(out, Const(0.0)), uniform_piece(diagonal, Const(1.0))])
    return out


@handles("lift_fresh")
def lift_fresh(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """A tensor that was just made from Python numbers; one number is as good as the argument of a fill."""
    out = func(*args, **kwargs)
    if _ordinary(out) and out.numel() == 1 and out.device.type == "cpu" and tracer.memory.find(out) is None:
        tracer.memory.define(out, tracer.memory.whole(out, Const(out.item())), concrete=True)
    return out


MOST_RUNS = 4096
"""An indexed write of a constant becomes boxes where it touches at most this many runs of elements."""


def _fixed(tracer: Any, *tensors: torch.Tensor) -> bool:
    """Make index or mask tensors concrete, and tell whether they are the same for every seed as far as is known."""
    for tensor in tensors:
        taint = tracer.memory.taint(tensor)
        if taint.draws or taint.random or taint.uninitialised or tensor.device.type == "meta":
            return False
        tracer.memory.force(tensor)
        tracer.read_external |= taint.external
    return True


def _write_where(tracer: Any, target: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
    """Write one value where a mask of the target's shape is true."""
    number = _number(tracer, value)
    if number is None or not _ordinary(target) or target.numel() == 0:
        return NotImplemented
    edges = torch.diff(mask.reshape(-1).to(torch.int8), prepend=torch.zeros(1, dtype=torch.int8))
    begins = torch.nonzero(edges == 1).reshape(-1).tolist()
    ends = torch.nonzero(edges == -1).reshape(-1).tolist() + [mask.numel()]
    if len(begins) > MOST_RUNS:
        return NotImplemented
    constant = Const(_rounded(number, target.dtype))
    tracer.memory.write(target, [uniform_piece(Box((e - b,), (1,), b), constant) for b, e in zip(begins, ends)])
    return target


@handles("index_put_")
def index_put(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Write one value at fixed indices."""
    target, indices, value = args[:3]
    accumulate = args[3] if len(args) > 3 else kwargs.get("accumulate", False)
    given = [index for index in indices if index is not None]
    if accumulate or not _fixed(tracer, *given) or not target.numel():
        return NotImplemented
    mask = torch.zeros(target.shape, dtype=torch.bool)
    return _write_where(tracer, target, mask.index_put_(list(indices), torch.tensor(True)), value)


@handles("index_fill_")
def index_fill(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Write one value into fixed rows."""
    target, dim, index, value = args[:4]
    if not _fixed(tracer, index):
        return NotImplemented
    mask = torch.zeros(target.shape, dtype=torch.bool).index_fill_(dim, index, True)
    return _write_where(tracer, target, mask, value)


@handles("masked_fill_")
def masked_fill(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Write one value where a fixed mask is true."""
    target, mask, value = args[:3]
    if not _fixed(tracer, mask):
        return NotImplemented
    return _write_where(tracer, target, mask.expand(target.shape), value)


# ---------------------------------------------------------------------- draws
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
        pieces = [p.holding(Const(_rounded(value.value, target.dtype))) for p in pieces]
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
    if not _ordinary(target) or law is None or not tracer.ambient(kwargs.get("generator")):
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
    out = _allocate("empty_like" if base.endswith("_like") else base, args, kwargs, dtype)
    return record_draw(tracer, out, base, (), Law(kind, (0.0, 1.0)), fresh=True)


@handles("normal")
def draw_normal(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """``torch.normal`` with one mean and one standard deviation."""
    mean = args[0]
    std = args[1] if len(args) > 1 else kwargs.get("std", 1.0)
    tensors = [x for x in (mean, std) if isinstance(x, torch.Tensor)]
    numbers = _number(tracer, mean), _number(tracer, std)
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
        out = _allocate("normal", (args[2],), kwargs, None)
    if not _ordinary(out):
        return NotImplemented
    # With tensors among its arguments torch draws around zero and shifts afterwards, which rounds differently.
    op = f"normal.{func._overloadname}" if tensors else "normal"
    return record_draw(tracer, out, op, numbers, law, fresh=True)


# ---------------------------------------------------------------------- copies
def _cast(value: Value, dtype: torch.dtype, source: torch.dtype) -> Value:
    """A value after a copy from one dtype to another."""
    if dtype == source:
        return value
    if isinstance(value, Const):
        return Const(_rounded(value.value, dtype))
    return value.after(("to", dtype)) if isinstance(value, Random) else value


def _copies(tracer: Any, name: str, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], run: Callable[[], Any]) -> Any:
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


@handles("clone", "_to_copy")
def copy_new(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Copy into new memory."""
    source = args[0]
    if source.device.type == "meta" or kwargs.get("layout") not in (None, torch.strided):
        return NotImplemented
    dtype, device = kwargs.get("dtype") or source.dtype, kwargs.get("device") or source.device
    if not _ordinary(source) or not dtype.is_floating_point or torch.device(device).type == "meta":
        return NotImplemented
    form = kwargs.get("memory_format") or torch.preserve_format
    out = torch.empty_like(source, dtype=dtype, device=device, memory_format=form)
    tracer.memory.define(out, tracer.memory.whole(out, Uninitialised()), concrete=True)
    _copies(tracer, "clone", [(out, source)], lambda: out.copy_(source))
    return out


@handles("copy_")
def copy_in_place(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Copy into memory that is there."""
    target, source = args[:2]
    if _copies_bytes(tracer, target, source):
        if tracer.memory.alias(target, source):
            func(*args, **kwargs)
        return target
    if "meta" in (target.device.type, source.device.type) or not _ordinary(target, source):
        return NotImplemented
    _copies(tracer, "copy_", [(target, source.expand(target.shape))], lambda: target.copy_(source))
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
    if "out" in kwargs or not _ordinary(*tensors) or any(t.device.type == "meta" for t in tensors):
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
    _copies(tracer, "cat", parts, lambda: [target.copy_(source) for target, source in parts])
    return out


@handles("repeat")
def repeat(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Copy a tensor several times into new memory."""
    source, times = args[:2]
    if not _ordinary(source) or source.device.type == "meta" or len(times) < source.dim():
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
    _copies(tracer, "repeat", [(target, view.expand(split))], lambda: target.copy_(view.expand(split)))
    return out


# ---------------------------------------------------------------------- arithmetic
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
    plain = bool(tensors) and _ordinary(*(t for _, t in tensors)) and all(t.device.type != "meta" for _, t in tensors)
    if not plain or len(func._schema.returns) != 1:
        return NotImplemented
    numbers: dict[int, float] = {}
    if len(tensors) > 1:
        found = {i: _number(tracer, t) for i, t in tensors}
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
                return Const(_rounded(new.value, dtype)) if isinstance(new, Const) else new
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
