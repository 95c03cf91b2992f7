"""A part of a parameter: the entries of its kernel table that fall into a range of its elements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from sff_fast.boxes import row_major
from sff_fast.table import BoxTask

Part = tuple[tuple[int, ...], tuple[int, ...]]
"""Start and size of a part of a box, in its own multi-index."""


def restricted(tasks: Sequence[BoxTask], tensor: torch.Tensor, low: int, high: int) -> Iterator[BoxTask]:
    """The part of a parameter's table that lies within a range of its elements.

    Args:
        tasks: Disjoint boxes of one contiguous parameter.
        tensor: [high - low] the elements of the range, contiguous.
        low: First element, as row-major logical index.
        high: One past the last.

    Yields:
        Disjoint boxes over ``tensor``. Every draw and rounding is that of the element in the whole parameter.
    """
    for task in tasks:
        for start, size in _parts(task.size, task.logical_strides, task.logical_offset, low, high):
            logical = _moved(task.logical_offset, start, task.logical_strides)
            yield replace(
                task,
                tensor=tensor,
                size=size,
                memory_strides=task.logical_strides,
                memory_offset=logical - low,
                draw_offset=_moved(task.draw_offset, start, task.draw_strides),
                logical_offset=logical,
            )


def _moved(offset: int, start: Sequence[int], strides: Sequence[int]) -> int:
    return offset + sum(index * stride for index, stride in zip(start, strides, strict=True))


def _parts(size: tuple[int, ...], strides: tuple[int, ...], offset: int, low: int, high: int) -> Iterator[Part]:
    """Cut a box into boxes that are within [low, high): whole slices of the outermost dimension, the two ends further in."""
    inner = sum((n - 1) * stride for n, stride in zip(size[1:], strides[1:]))
    last = offset + inner + (size[0] - 1) * strides[0]
    if 0 in size or last < low or offset >= high:
        return
    if low <= offset and last < high:
        yield (0,) * len(size), size
        return
    step = strides[0]
    reached = range(max(0, -((offset + inner - low) // step)), min(size[0], (high - 1 - offset) // step + 1))
    whole = range(max(0, -((offset - low) // step)), min(size[0], (high - 1 - inner - offset) // step + 1))
    if len(whole):
        yield (whole.start, *(0,) * (len(size) - 1)), (len(whole), *size[1:])
        cut = (*range(reached.start, whole.start), *range(whole.stop, reached.stop))
    else:
        cut = reached
    for k in cut:
        for start, part in _parts(size[1:], strides[1:], offset + k * step, low, high):
            yield (k, *start), (1, *part)


def whole_shape(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A contiguous tensor of a shape without memory, for which a table can be built."""
    return torch.empty_strided(tuple(shape), row_major(shape), dtype=dtype, device="meta")
