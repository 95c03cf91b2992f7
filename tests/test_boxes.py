"""Arithmetic with boxes, against sets of element numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sff_fast.boxes import Box, Unrepresentable, coalesce, common, embed, intersect, nested, paint, positions, through


@st.composite
def views(draw, numel=120):
    """A box that slicing, transposing and selecting make out of a contiguous tensor."""
    shape = draw(st.sampled_from([(120,), (10, 12), (4, 5, 6), (2, 3, 4, 5)]))
    index = np.arange(numel).reshape(shape)
    for axis in range(len(shape)):
        begin = draw(st.integers(0, index.shape[axis] - 1))
        end = draw(st.integers(begin + 1, index.shape[axis]))
        step = draw(st.integers(1, 3))
        index = np.take(index, range(begin, end, step), axis)
    index = np.transpose(index, draw(st.permutations(range(index.ndim))))
    strides = tuple(int(np.diff(index, axis=i).ravel()[0]) if n > 1 else 1 for i, n in enumerate(index.shape))
    box = Box(index.shape, strides, int(index.ravel()[0]))
    assert positions(box).tolist() == index.ravel().tolist()
    return box


@given(views())
def test_coalescing_keeps_the_elements(box):
    size, strides = coalesce(box.size, box.strides)
    assert sorted(positions(Box(size, strides, box.offset))) == sorted(positions(box))
    assert len(size) <= max(1, sum(n > 1 for n in box.size))


@given(views(), views())
def test_a_box_that_embeds_is_found_at_the_right_elements(inner, outer):
    found = embed(inner, outer)
    if found is None:
        return
    strides, offset = through(*found, outer.strides, outer.offset)
    assert positions(Box(inner.size, strides, offset)).tolist() == positions(inner).tolist()
    assert set(positions(inner)) <= set(positions(outer))


@given(views())
def test_every_box_embeds_into_the_contiguous_whole(box):
    assert embed(box, Box((120,), (1,), 0)) is not None


@settings(max_examples=300)
@given(views(), views())
def test_the_intersection_is_that_of_the_sets(a, b):
    expected = set(positions(a)) & set(positions(b))
    try:
        shared = intersect(a, b)
    except Unrepresentable:
        return
    assert (set(positions(shared)) if shared else set()) == expected


@settings(max_examples=300)
@given(views(), views())
def test_common_places_the_shared_elements_in_both_boxes(a, b):
    try:
        shared = common(a, b)
    except Unrepresentable:
        return
    expected = set(positions(a)) & set(positions(b))
    if shared is None:
        assert not expected
        return
    box, in_a, in_b = shared
    assert set(positions(box)) == expected
    for place, outer in ((in_a, a), (in_b, b)):
        strides, offset = through(*place, outer.strides, outer.offset)
        assert positions(Box(box.size, strides, offset)).tolist() == positions(box).tolist()


def test_rows_and_columns_of_a_matrix_meet_in_a_rectangle():
    rows, columns = Box((2, 6), (6, 1), 6), Box((4, 2), (6, 3), 1)
    assert set(positions(intersect(rows, columns))) == {7, 10, 13, 16}


def test_boxes_on_grids_that_do_not_divide_are_refused():
    with pytest.raises(Unrepresentable):
        intersect(Box((5, 2), (6, 1), 0), Box((4, 2), (7, 1), 0))


@pytest.mark.parametrize(
    ("size", "strides", "expected"),
    [((3, 4), (4, 1), True), ((3, 4), (1, 3), True), ((3, 4), (2, 1), False), ((3, 1), (0, 5), False), ((1, 4), (0, 2), True)],
)
def test_nested_boxes_hold_no_element_twice(size, strides, expected):
    assert nested(Box(size, strides, 0)) is expected


@given(st.lists(views(), max_size=5))
def test_painting_gives_each_element_its_last_box(boxes):
    expected = np.full(120, -1)
    for i, box in enumerate(boxes):
        expected[positions(box)] = i
    owner, unit = paint(120, boxes)
    assert np.repeat(owner, unit).tolist() == expected.tolist()


def test_painting_whole_rows_counts_in_rows():
    owner, unit = paint(10**9, [Box((10**9,), (1,), 0), Box((3, 1000), (5000, 1), 1000)])
    assert unit == 1000
    assert np.flatnonzero(owner == 1).tolist() == [1, 6, 11]
