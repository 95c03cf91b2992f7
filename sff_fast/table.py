"""The kernel table: an init plan laid over the memory of a model's parameters.

Each entry is one box: a set of elements of one parameter, evenly spaced in memory, in the draw and in the parameter's
logical order. The plan's segments may lie over each other; here they are resolved into disjoint boxes (the last write
wins), so that every element is touched once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sff_fast.boxes import Box, coalesce, embed, paint, row_major, through
from sff_fast.distributions import Constant, Distribution, Materialized, Normal, TruncNormal, Uniform
from sff_fast.errors import PlanError
from sff_fast.plan import InitPlan, ParameterPlan, Segment
from sff_fast.rectangles import Rectangle, clip, clip_steps, visible
from sff_fast.stream import ROUND, rounding_key, stream_id

CONSTANT, UNIFORM, NORMAL, TRUNC_NORMAL, TABLE = range(5)
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
MAX_RANK = 6
TASK_DTYPE = np.dtype(
    [
        ("data", "u8"),
        ("table", "u8"),
        ("memory_elements", "i8"),
        ("table_elements", "i8"),
        ("dtype", "i4"),
        ("distribution", "i4"),
        ("rounding", "i4"),
        ("rank", "i4"),
        ("size", "i8", MAX_RANK),
        ("memory_strides", "i8", MAX_RANK),
        ("draw_strides", "i8", MAX_RANK),
        ("logical_strides", "i8", MAX_RANK),
        ("memory_offset", "i8"),
        ("draw_offset", "i8"),
        ("logical_offset", "i8"),
        ("seed", "u8"),
        ("stream", "u8"),
        ("round_seed", "u8"),
        ("round_stream", "u8"),
        ("shrink", "f8"),
        ("perturb", "f8"),
        ("p", "f4", 8),
    ]
)
"""The layout of ``sff::Task`` in ``csrc/core/task.h``."""

_NARROWEST_UNIFORM = 2.0**-100


class Pair(NamedTuple):
    """A parameter's plan and the memory that it is laid over.

    Args:
        parameter: The plan of the parameter.
        tensor: The parameter, or the part of it that lies here.
        shrink: Factor of the old values.
        perturb: Factor of the new ones.
        region: Which part of the parameter's shape ``tensor`` holds, one half-open interval an axis; None for all of it.
    """

    parameter: ParameterPlan
    tensor: torch.Tensor
    shrink: float
    perturb: float
    region: Rectangle | None = None


@dataclass(slots=True)
class BoxTask:
    """One box of one parameter, constant once made.

    See ``sff::Task`` in ``csrc/core/task.h`` for the meaning of every number.
    """

    tensor: torch.Tensor
    distribution: int
    p: tuple[float, ...]
    size: tuple[int, ...]
    memory_strides: tuple[int, ...]
    draw_strides: tuple[int, ...]
    logical_strides: tuple[int, ...]
    memory_offset: int
    draw_offset: int
    logical_offset: int
    seed: int
    stream: int
    round_seed: int
    round_stream: int
    shrink: float
    perturb: float
    stochastic: bool
    table: torch.Tensor | None = None


# ---------------------------------------------------------------------- distributions
def _f32(value: float) -> float:
    return float(np.float32(value))


def _tails(x: float) -> tuple[float, float]:
    """Probability below and above ``x`` of the standard normal, both with full relative precision."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0)), 0.5 * math.erfc(x / math.sqrt(2.0))


def parameters_of(distribution: Distribution) -> tuple[int, tuple[float, ...]]:
    """Code and eight float32 parameters of an elementwise distribution, as the kernels take them.

    Args:
        distribution: A Uniform, Normal, TruncNormal or Constant.

    Returns:
        The code, and p as ``csrc/core/task.h`` describes it.

    Raises:
        PlanError: The distribution cannot be represented in random stream version 1.
    """
    if isinstance(distribution, Constant):
        code, p = CONSTANT, (_f32(distribution.value),)
    elif isinstance(distribution, Uniform):
        low, high = np.float32(distribution.low), np.float32(distribution.high)
        width = float(high - low)
        if not math.isfinite(width) or 0 < width < _NARROWEST_UNIFORM:
            raise PlanError(f"{distribution} has a width of {width!r} in float32: expected 0, or 2**-100 to 3.4e38")
        code, p = UNIFORM, (float(low), width)
    elif isinstance(distribution, Normal):
        code, p = NORMAL, (_f32(distribution.mean), _f32(distribution.std))
    elif isinstance(distribution, TruncNormal):
        code, p = _truncated(distribution)
    else:
        raise PlanError(f"{distribution} is not elementwise")
    return code, p + (0.0,) * (8 - len(p))


def _truncated(distribution: TruncNormal) -> tuple[int, tuple[float, ...]]:
    mean, std, a, b = (_f32(v) for v in (distribution.mean, distribution.std, distribution.a, distribution.b))
    if std == 0 or a == b:
        return CONSTANT, (min(max(mean, a), b),)
    (below, at_least_a), (at_most_b, above) = _tails((a - mean) / std), _tails((b - mean) / std)
    # From whichever side the difference of two probabilities is not cancelled
    mass = at_least_a - above if a > mean else at_most_b - below
    step = mass * 2.0**-24
    smallest = min(below, above) + step / 2  # the smallest tail probability that a draw can have
    quarter = min(smallest, 0.5)
    tail = -math.log(4 * quarter * (1 - quarter)) > 4.9  # the tail's polynomial begins at 5
    return TRUNC_NORMAL, (mean, std, a, b, _f32(below), _f32(above), _f32(step), float(tail))


# ---------------------------------------------------------------------- boxes
def _resolve(parameter: ParameterPlan) -> Iterator[tuple[int, Box]]:
    """Disjoint boxes of the parameter's elements with the number of the segment that owns each."""
    segments = parameter.segments
    if parameter.numel == 0:
        return
    if len(segments) == 1:
        yield 0, segments[0].box
        return
    parts = visible([segment.box for segment in segments], parameter.shape)
    if parts is None:
        parts = _painted(parameter)
    for i, boxes in enumerate(parts):
        for box in boxes:
            yield from ((i, part) for part in _inside(box, segments[i].box))


def _painted(parameter: ParameterPlan) -> list[list[Box]]:
    """The same for boxes that step over elements: 4 bytes an element of memory for as long as it takes."""
    boxes = [segment.box for segment in parameter.segments]
    owner, unit = paint(parameter.numel, boxes)
    count = np.bincount(owner, minlength=len(boxes)) * unit
    return [[box] if count[i] == box.numel else list(_intervals(owner == i, unit)) for i, box in enumerate(boxes)]


def _intervals(mine: np.ndarray, unit: int) -> Iterator[Box]:
    """The true runs as boxes, equally long and equally spaced neighbours taken together."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mine.view(np.int8), [0]))))
    starts, lengths = edges[::2] * unit, (edges[1::2] - edges[::2]) * unit
    at = 0
    while at < len(starts):
        end = at + 1
        if end < len(starts) and lengths[end] == lengths[at]:
            gap = starts[end] - starts[at]
            while end < len(starts) and lengths[end] == lengths[at] and starts[end] - starts[end - 1] == gap:
                end += 1
            yield Box((end - at, int(lengths[at])), (int(gap), 1), int(starts[at]))
        else:
            yield Box((int(lengths[at]),), (1,), int(starts[at]))
        at = end


def _inside(box: Box, outer: Box) -> Iterator[Box]:
    """The box cut into parts whose place in ``outer`` is linear, and forward in each dimension."""
    place = embed(box, outer)
    if place is not None and all(change >= 0 for step in place[1] for change in step):
        yield box
    elif len(box.size) > 1:
        for k in range(box.size[0]):
            yield from _inside(Box(box.size[1:], box.strides[1:], box.offset + k * box.strides[0]), outer)
    else:  # a run: as long as possible from its start, by halving
        half = box.size[0] // 2
        yield from _inside(Box((half,), box.strides, box.offset), outer)
        yield from _inside(Box((box.size[0] - half,), box.strides, box.offset + half * box.strides[0]), outer)


def _draw_form(segment: Segment) -> tuple[tuple[int, ...], int]:
    """Strides and offset of the segment's draw; values that are stored are numbered in the segment's own order."""
    if isinstance(segment.distribution, Materialized):
        return row_major(segment.size), 0
    return segment.draw_strides, segment.draw_offset


def _held(parameter: ParameterPlan, whole: Box, region: Rectangle) -> Iterator[tuple[int, Box]]:
    """What :func:`_resolve` gives, of one region of the parameter's shape."""
    for i, box in _resolve(parameter):
        parts = clip(box, whole.size, region)
        if parts is None:
            steps = _inside(box, whole)
            parts = [cut for part in steps for cut in clip_steps(part, embed(part, whole), region)]
        yield from ((i, inner) for part in parts for inner in _inside(part, parameter.segments[i].box))


def boxes(
    parameter: ParameterPlan, tensor: torch.Tensor, region: Rectangle | None = None
) -> Iterator[tuple[int, tuple[int, ...], tuple, tuple]]:
    """Segment number, size, three lists of strides and three offsets (memory, draw, logical) of every disjoint box.

    ``tensor`` holds the region of the parameter's shape, None for all of it; draws and logical numbers stay the parameter's.
    """
    shape, whole = parameter.shape, Box(parameter.shape, row_major(parameter.shape), 0)
    contiguous = region is None and tensor.is_contiguous()
    begin = (0,) * len(shape) if region is None else tuple(low for low, _ in region)
    for i, box in _resolve(parameter) if region is None else _held(parameter, whole, region):
        segment = parameter.segments[i]
        draw_strides, draw_offset = _draw_form(segment)
        if box.numel == parameter.numel and len(box.size) <= 1 and draw_strides in ((), (0,), (1,)):
            step = draw_strides[0] if draw_strides else 1
            if contiguous:
                yield i, (parameter.numel,), ((1,), (step,), (1,)), (0, draw_offset, 0)
            else:
                strides = (tensor.stride(), tuple(s * step for s in whole.strides), whole.strides)
                yield i, shape, strides, (0, draw_offset, 0)
            continue
        parts = [box] if contiguous else list(_inside(box, whole))
        for part in parts:
            start, steps = embed(part, segment.box)
            draw, draw_at = through(start, steps, draw_strides, draw_offset)
            if contiguous:
                memory, memory_at = part.strides, part.offset
            else:
                start, steps = embed(part, whole)
                memory, memory_at = through([at - low for at, low in zip(start, begin)], steps, tensor.stride(), 0)
            yield i, part.size, (memory, draw, part.strides), (memory_at, draw_at, part.offset)


def _ranked(size: tuple[int, ...], forms: tuple, offsets: tuple) -> Iterator[tuple[tuple[int, ...], tuple, tuple]]:
    """The box with as few dimensions as possible, cut along the outermost ones where the kernels cannot take them all."""
    if len(size) == 1:
        yield size, forms, offsets
        return
    size, *strides = coalesce(size, *forms) if 0 not in size else ((0,), *((1,),) * 3)
    if len(size) <= MAX_RANK:
        yield size, tuple(strides), offsets
        return
    for k in range(size[0]):
        moved = tuple(offset + k * form[0] for offset, form in zip(offsets, strides))
        yield from _ranked(size[1:], tuple(form[1:] for form in strides), moved)


def _stored(plan: InitPlan, name: str, index: int, seed: int) -> torch.Tensor:
    """The float32 values of a segment that is not elementwise; a table's own memory where it is float32."""
    if plan[name].segments[index].distribution.kind == "table" and plan.table(name, index).dtype == torch.float32:
        return plan.table(name, index).contiguous()
    return plan.materialize(name, index, seed).to(torch.float32).contiguous()


def build(
    pairs: Sequence[Pair | tuple[ParameterPlan, torch.Tensor, float, float]],
    plan: InitPlan | None,
    seed: int,
    rounding: str = "nearest",
    step: int = 0,
) -> list[BoxTask]:
    """Lay parameters over memory.

    Args:
        pairs: A :class:`Pair`, or its first four items, a parameter, in any order.
        plan: The whole plan, needed where a parameter has values that are not elementwise.
        seed: Seed of the random stream, in [0, 2**64).
        rounding: ``"nearest"`` or ``"stochastic"``.
        step: Step of the stochastic rounding, default 0.

    Returns:
        Disjoint boxes.

    Raises:
        PlanError: A distribution cannot be represented, or values that are not elementwise cannot be had.
    """
    tasks: list[BoxTask] = []
    known: dict[Distribution, tuple[int, tuple[float, ...]]] = {}
    for parameter, tensor, shrink, perturb, region in (Pair(*pair) for pair in pairs):
        tensor = tensor.detach()
        tables: dict[int, torch.Tensor] = {}
        for i, size, forms, offsets in boxes(parameter, tensor, region):
            segment = parameter.segments[i]
            distribution = segment.distribution
            if isinstance(distribution, Materialized):
                if i not in tables:
                    if plan is None:
                        raise PlanError(f"{parameter.name!r} holds {distribution}: the whole plan is needed to draw it")
                    tables[i] = _stored(plan, parameter.name, i, seed)
                code, p = TABLE, (0.0,) * 8
            else:
                if distribution not in known:
                    known[distribution] = parameters_of(distribution)
                code, p = known[distribution]
            for part_size, part_forms, part_offsets in _ranked(size, forms, offsets):
                tasks.append(
                    BoxTask(
                        tensor,
                        code,
                        p,
                        part_size,
                        *part_forms,
                        *part_offsets,
                        seed,
                        stream_id(segment.draw) if code not in (CONSTANT, TABLE) else 0,
                        rounding_key(seed, step),
                        stream_id(parameter.name, ROUND),
                        shrink,
                        perturb,
                        rounding == "stochastic",
                        tables.get(i),
                    )
                )
    return tasks


def pack(tasks: Sequence[BoxTask]) -> np.ndarray:
    """The table as the CPU kernels read it: one record of :data:`TASK_DTYPE` a task, viewed as bytes."""

    def padded(values: tuple[int, ...], fill: int) -> tuple[int, ...]:
        return values + (fill,) * (MAX_RANK - len(values))

    rows = []
    for t in tasks:
        width = t.tensor.element_size()
        reach = 1 + sum((n - 1) * s for n, s in zip(t.tensor.shape, t.tensor.stride())) if t.tensor.numel() else 0
        rows.append(
            (
                t.tensor.data_ptr() if t.tensor.numel() else width,
                t.table.data_ptr() if t.table is not None else 0,
                reach,
                t.table.numel() if t.table is not None else 0,
                DTYPES[t.tensor.dtype],
                t.distribution,
                int(t.stochastic),
                len(t.size),
                padded(t.size, 1),
                padded(t.memory_strides, 0),
                padded(t.draw_strides, 0),
                padded(t.logical_strides, 0),
                t.memory_offset,
                t.draw_offset,
                t.logical_offset,
                t.seed,
                t.stream,
                t.round_seed,
                t.round_stream,
                t.shrink,
                t.perturb,
                t.p,
            )
        )
    return np.array(rows, dtype=TASK_DTYPE).reshape(-1).view(np.uint8)
