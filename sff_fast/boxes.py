"""Arithmetic with boxes: strided, rectangular sets of element numbers.

A box is ``(size, strides, offset)``: the multi-index ``m`` in ``size`` stands for element ``offset + sum(m * strides)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """A strided, rectangular set of element numbers."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.size)

    @property
    def last(self) -> int:
        """The greatest element number; strides are not negative."""
        return self.offset + sum((n - 1) * s for n, s in zip(self.size, self.strides))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor of this shape."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def coalesce(size: Sequence[int], *forms: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Describe the same elements with as few dimensions as possible.

    Dimensions of size one go, the others are ordered by falling stride of the first form, and neighbours that act as one
    in every form are merged.

    Args:
        size: Sizes, each at least one.
        forms: One or more lists of strides over these dimensions.

    Returns:
        The new sizes, then the new strides of every form. A single element is ``(1,)`` with strides ``(1,)``.
    """
    dims = [(n, *strides) for n, *strides in zip(size, *forms) if n != 1]
    dims.sort(key=lambda dim: -dim[1])
    merged: list[tuple[int, ...]] = []
    for dim in dims:
        if merged and all(outer == inner * dim[0] for outer, inner in zip(merged[-1][1:], dim[1:])):
            merged[-1] = (merged[-1][0] * dim[0], *dim[1:])
        else:
            merged.append(dim)
    if not merged:
        return ((1,),) * (1 + len(forms))
    return tuple(zip(*merged))


def embed(inner: Box, outer: Box) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]] | None:
    """Where the elements of one box lie in another, as a linear map.

    Args:
        inner: The box to look for, of at least one element.
        outer: The box to look in: no stride zero, no element twice.

    Returns:
        ``(start, steps)``: the outer multi-index of the inner element zero, and for each inner dimension the change of the
        outer multi-index a step; None where some element of ``inner`` is not in ``outer`` or the map is not linear.
    """
    order = sorted(range(len(outer.size)), key=lambda i: -outer.strides[i])

    def index_of(element: int) -> tuple[int, ...] | None:
        rest, index = element - outer.offset, [0] * len(outer.size)
        if rest < 0:
            return None
        for i in order:
            if outer.size[i] == 1:
                continue
            index[i] = min(rest // outer.strides[i], outer.size[i] - 1)
            rest -= index[i] * outer.strides[i]
        return tuple(index) if rest == 0 else None

    start = index_of(inner.offset)
    if start is None:
        return None
    low, high, steps = list(start), list(start), []
    for n, stride in zip(inner.size, inner.strides):
        if n == 1 or stride == 0:
            steps.append((0,) * len(outer.size))
            continue
        second = index_of(inner.offset + stride)
        if second is None:
            return None
        step = tuple(q - p for p, q in zip(start, second))
        steps.append(step)
        for i, change in enumerate(step):
            if change > 0:
                high[i] += (n - 1) * change
            else:
                low[i] += (n - 1) * change
    if any(p < 0 or q >= n for p, q, n in zip(low, high, outer.size)):
        return None
    return start, tuple(steps)


def through(
    start: Sequence[int], steps: Sequence[Sequence[int]], strides: Sequence[int], offset: int
) -> tuple[tuple[int, ...], int]:
    """Apply a linear form of the outer box to the map that :func:`embed` found.

    Returns:
        Strides over the inner dimensions, and the offset.
    """
    return (
        tuple(sum(change * stride for change, stride in zip(step, strides)) for step in steps),
        offset + sum(index * stride for index, stride in zip(start, strides)),
    )


def positions(box: Box) -> np.ndarray:
    """Element numbers of a box in its row-major order, int64."""
    index = np.array([box.offset], dtype=np.int64)
    for n, stride in zip(box.size, box.strides):
        index = (index[:, None] + np.arange(n, dtype=np.int64) * stride).reshape(-1)
    return index


def paint(numel: int, boxes: Sequence[Box]) -> tuple[np.ndarray, int]:
    """Which box owns each element when later boxes lie over earlier ones.

    Args:
        numel: Number of elements painted on.
        boxes: Boxes in order, each inside ``range(numel)``, strides above zero.

    Returns:
        ``(owner, unit)``: int32 index of the last box over each run of ``unit`` elements, -1 where there is none. All
        elements of a run have one owner.
    """
    unit, plain = numel, []
    for box in boxes:
        if box.numel == 0:
            plain.append(None)
            continue
        size, strides = coalesce(box.size, box.strides)
        run = size[-1] if strides[-1] == 1 else 1
        unit = math.gcd(unit, run, box.offset, *(strides[:-1] if strides[-1] == 1 else strides))
        plain.append((size, strides, box.offset))
    unit = max(unit, 1)
    owner = np.full(numel // unit, -1, dtype=np.int32)
    for i, box in enumerate(plain):
        if box is None:
            continue
        size, strides, offset = box
        if strides[-1] == 1:
            size, strides = (*size[:-1], size[-1] // unit), (*(s // unit for s in strides[:-1]), 1)
        view = np.lib.stride_tricks.as_strided(owner[offset // unit :], size, [s * owner.itemsize for s in strides])
        view[...] = i
    return owner, unit


class Unrepresentable(Exception):
    """Two boxes overlap in a way that no single box describes. Callers fall back to concrete values."""


def nested(box: Box) -> bool:
    """Whether each stride steps over everything that the smaller ones reach; then no element comes twice."""
    reach = 0
    for stride, n in sorted((s, n) for n, s in zip(box.size, box.strides) if n > 1):
        if stride <= reach:
            return False
        reach += (n - 1) * stride
    return True


def _coordinates(box: Box, grid: Sequence[int]) -> tuple[list[int], list[int]]:
    """Start and count of a box along each stride of a divisibility chain that ends in 1."""
    limits = [0, *(grid[i - 1] // grid[i] for i in range(1, len(grid)))]
    start, rest = [], box.offset
    for step in grid:
        start.append(rest // step)
        rest %= step
    count = [1] * len(grid)
    for n, stride in zip(box.size, box.strides):
        if n > 1:
            count[grid.index(stride)] = n
    for i in range(len(grid) - 1, 0, -1):
        if start[i] + count[i] <= limits[i]:
            continue
        if start[i] or count[i] % limits[i] or count[i - 1] > 1:
            raise Unrepresentable
        count[i - 1], count[i] = count[i] // limits[i], limits[i]
    return start, count


def intersect(a: Box, b: Box) -> Box | None:
    """The elements that two nested boxes have in common.

    Args:
        a: A nested box.
        b: Another one.

    Returns:
        Their intersection, or None where it is empty.

    Raises:
        Unrepresentable: No single box describes it.
    """
    if a.last < b.offset or b.last < a.offset:
        return None
    if not (nested(a) and nested(b)):
        raise Unrepresentable
    # Not coalesced: the maps that callers carry on these boxes are linear in the dimensions as they are.
    strides = {s for box in (a, b) for n, s in zip(box.size, box.strides) if n > 1}
    grid = sorted(strides | {1}, reverse=True)
    if any(outer % inner for outer, inner in pairwise(grid)):
        raise Unrepresentable
    (start_a, count_a), (start_b, count_b) = _coordinates(a, grid), _coordinates(b, grid)
    start = [max(p, q) for p, q in zip(start_a, start_b)]
    count = [min(p + n, q + m) - s for p, n, q, m, s in zip(start_a, count_a, start_b, count_b, start)]
    if min(count) <= 0:
        return None
    return Box(tuple(count), tuple(grid), sum(s * step for s, step in zip(start, grid)))


def common(a: Box, b: Box) -> tuple[Box, tuple, tuple] | None:
    """The elements that two boxes share, with their place in both.

    Args:
        a: A box.
        b: A box. One of the two may repeat elements (stride zero) where it lies inside of the other.

    Returns:
        ``(box, map into a, map into b)`` with maps as :func:`embed` gives them, or None where nothing is shared.

    Raises:
        Unrepresentable: No single box describes what they share.
    """
    if a.last < b.offset or b.last < a.offset:
        return None
    if nested(b) and (found := embed(a, b)) is not None:
        return a, _identity(a), found
    if nested(a) and (found := embed(b, a)) is not None:
        return b, found, _identity(b)
    shared = intersect(a, b)
    if shared is None:
        return None
    in_a, in_b = embed(shared, a), embed(shared, b)
    if in_a is None or in_b is None:
        raise Unrepresentable
    return shared, in_a, in_b


def _identity(box: Box) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    dims = len(box.size)
    return (0,) * dims, tuple(tuple(int(i == j) for j in range(dims)) for i in range(dims))
