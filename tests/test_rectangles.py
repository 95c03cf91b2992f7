"""What stays visible of boxes under boxes, against counting elements one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sff_fast.boxes import Box, row_major
from sff_fast.rectangles import rectangles_of, subtract, visible


def elements(box: Box) -> list[int]:
    return [box.offset + sum(i * s for i, s in zip(m, box.strides)) for m in itertools.product(*(range(n) for n in box.size))]


@st.composite
def layered(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    numel, strides = math.prod(shape), row_major(shape)
    boxes = [Box((numel,), (1,), 0)]
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):  # a run
            begin = draw(st.integers(0, numel - 1))
            boxes.append(Box((draw(st.integers(1, numel - begin)),), (1,), begin))
        else:  # a slab
            low = [draw(st.integers(0, n - 1)) for n in shape]
            size = tuple(draw(st.integers(1, n - at)) for n, at in zip(shape, low))
            boxes.append(Box(size, strides, sum(at * s for at, s in zip(low, strides))))
    return shape, boxes


@settings(max_examples=300, deadline=None, derandomize=True)
@given(layered())
def test_every_element_belongs_to_the_last_box_over_it_and_to_no_other(case):
    shape, boxes = case
    owner = {}
    for i, box in enumerate(boxes):
        owner.update(dict.fromkeys(elements(box), i))
    parts = visible(boxes, shape)
    found = [(e, i) for i, left in enumerate(parts) for part in left for e in elements(part)]
    assert len(found) == len(owner)
    assert dict(found) == owner


def test_boxes_that_step_over_elements_are_not_rectangles():
    assert rectangles_of(Box((3,), (2,), 0), (6,)) is None
    assert rectangles_of(Box((4,), (7,), 0), (4, 6)) is None
    assert visible([Box((6,), (1,), 0), Box((3,), (2,), 0)], (6,)) is None


@pytest.mark.parametrize(("begin", "end", "parts"), [(0, 24, 1), (0, 12, 1), (4, 8, 1), (5, 23, 4), (2, 3, 1)])
def test_a_run_needs_few_rectangles(begin, end, parts):
    assert len(rectangles_of(Box((end - begin,), (1,), begin), (2, 3, 4))) <= parts


def test_a_hole_in_the_middle_leaves_four_parts():
    parts = subtract(((0, 5), (0, 5)), ((1, 2), (3, 4)))
    mask = np.zeros((5, 5), int)
    for (a, b), (c, d) in parts:
        mask[a:b, c:d] += 1
    mask[1, 3] += 1
    assert len(parts) == 4
    assert (mask == 1).all()
