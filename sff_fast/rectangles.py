"""Which part of each box stays visible when later boxes lie over it, by arithmetic on index rectangles.

A rectangle is one half-open interval an axis of a parameter's shape. The work and the memory depend on the number of boxes
alone, not on the number of elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sff_fast.boxes import Box, coalesce, embed, row_major

Rectangle = tuple[tuple[int, int], ...]


def rectangles_of(box: Box, shape: Sequence[int]) -> list[Rectangle] | None:
    """The box as rectangles of the shape's axes.

    Args:
        box: Logical element numbers of a parameter.
        shape: The parameter's shape.

    Returns:
        Disjoint rectangles, one for a slab and up to two an axis for a run of elements; None for a box that steps over
        elements.
    """
    size, strides = coalesce(box.size, box.strides)
    if len(size) == 1 and strides[0] == 1:
        return list(_run(box.offset, box.offset + size[0], tuple(shape)))
    place = embed(box, Box(tuple(shape), row_major(shape), 0))
    if place is None:
        return None
    bounds = [(at, at + 1) for at in place[0]]
    for n, step in zip(box.size, place[1]):
        moved = [axis for axis, change in enumerate(step) if change]
        if n == 1:
            continue
        if len(moved) != 1 or step[moved[0]] != 1 or bounds[moved[0]][1] - bounds[moved[0]][0] != 1:
            return None
        low = bounds[moved[0]][0]
        bounds[moved[0]] = (low, low + n)
    return [tuple(bounds)]


def _run(begin: int, end: int, shape: tuple[int, ...]) -> Iterator[Rectangle]:
    """Elements [begin, end): the rest of a first row, whole rows, the start of a last row, at every axis."""
    if begin >= end:
        return
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    first, last = begin // inner, (end - 1) // inner
    if first == last:
        for rest in _run(begin - first * inner, end - first * inner, shape[1:]):
            yield ((first, first + 1), *rest)
        return
    whole_from = first if begin == first * inner else first + 1
    whole_to = last + 1 if end == (last + 1) * inner else last
    yield from (((first, first + 1), *rest) for rest in _run(begin - first * inner, inner, shape[1:]) if whole_from > first)
    if whole_from < whole_to:
        yield ((whole_from, whole_to), *((0, n) for n in shape[1:]))
    yield from (((last, last + 1), *rest) for rest in _run(0, end - last * inner, shape[1:]) if whole_to == last)


def subtract(rectangle: Rectangle, hole: Rectangle) -> list[Rectangle]:
    """The rectangle without the hole, as at most two rectangles an axis."""
    if any(low >= hole_high or hole_low >= high for (low, high), (hole_low, hole_high) in zip(rectangle, hole)):
        return [rectangle]
    parts, core = [], list(rectangle)
    for axis, (hole_low, hole_high) in enumerate(hole):
        low, high = core[axis]
        for piece in ((low, hole_low), (hole_high, high)):
            if piece[0] < piece[1]:
                parts.append((*core[:axis], piece, *core[axis + 1 :]))
        core[axis] = (max(low, hole_low), min(high, hole_high))
    return parts


def clip(box: Box, shape: Sequence[int], region: Rectangle) -> list[Box] | None:
    """The part of a box that lies in a region.

    Args:
        box: Logical element numbers of a parameter.
        shape: The parameter's shape.
        region: One half-open interval an axis.

    Returns:
        Disjoint boxes; None for a box that steps over elements, see :func:`clip_steps`.
    """
    own = rectangles_of(box, shape)
    if own is None:
        return None
    cuts = [tuple((max(low, begin), min(high, end)) for (low, high), (begin, end) in zip(rectangle, region)) for rectangle in own]
    return [_box(cut, row_major(shape)) for cut in cuts if all(low < high for low, high in cut)]


def clip_steps(box: Box, place: tuple[Sequence[int], Sequence[Sequence[int]]], region: Rectangle) -> Iterator[Box]:
    """The part of a box that steps over elements which lies in a region, as disjoint boxes.

    Args:
        box: Logical element numbers of a parameter.
        place: Where the box lies in the parameter's shape, as :func:`sff_fast.boxes.embed` gives it, with no step below zero.
        region: One half-open interval an axis.
    """
    start, steps = place
    movers = [[i for i, (n, step) in enumerate(zip(box.size, steps)) if n > 1 and step[axis]] for axis in range(len(region))]
    crowded = {i for together in movers if len(together) > 1 for i in together}
    if crowded:  # several dimensions move along one axis: one of them is taken element by element
        i = min(crowded, key=lambda i: box.size[i])
        for k in range(box.size[i]):
            inner = Box(box.size[:i] + box.size[i + 1 :], box.strides[:i] + box.strides[i + 1 :], box.offset + k * box.strides[i])
            moved = tuple(at + k * change for at, change in zip(start, steps[i]))
            yield from clip_steps(inner, (moved, (*steps[:i], *steps[i + 1 :])), region)
        return
    low, high = [0] * len(box.size), list(box.size)
    for (begin, end), at, together, axis in zip(region, start, movers, range(len(region))):
        if not together:
            if not begin <= at < end:
                return
            continue
        (i,) = together
        low[i] = max(low[i], -((at - begin) // steps[i][axis]))
        high[i] = min(high[i], -((at - end) // steps[i][axis]))
    if all(a < b for a, b in zip(low, high)):
        size = tuple(b - a for a, b in zip(low, high))
        yield Box(size, box.strides, box.offset + sum(a * stride for a, stride in zip(low, box.strides)))


def visible(boxes: Sequence[Box], shape: Sequence[int]) -> list[list[Box]] | None:
    """What is left of each box when every later one lies over it.

    Args:
        boxes: Boxes in order of writing.
        shape: The parameter's shape.

    Returns:
        For each box disjoint boxes; None where a box cannot be expressed by rectangles.
    """
    strides = row_major(shape)
    covered: list[Rectangle] = []
    result: list[list[Box]] = []
    for box in reversed(boxes):
        own = rectangles_of(box, shape)
        if own is None:
            return None
        left = own
        for hole in covered:
            left = [part for rectangle in left for part in subtract(rectangle, hole)]
        if left == own:
            result.append([box])  # untouched: as it was given, whose place in its own draw is simple
        else:
            result.append([_box(rectangle, strides) for rectangle in left])
        covered += own
    return result[::-1]


def _box(rectangle: Rectangle, strides: Sequence[int]) -> Box:
    size = tuple(high - low for low, high in rectangle)
    return Box(size, tuple(strides), sum(low * stride for (low, _), stride in zip(rectangle, strides)))
