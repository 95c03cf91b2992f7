"""The unmodified CUDA kernels, run on the CPU by a shim: the same bits as the reference, whatever the launch."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from cuda_shim import HERE, Shim, build, run_sanitized
from kernel_cases import DISTRIBUTIONS, DTYPES, bits, tasks_for, weights, whole

from sff_fast import table
from sff_fast.backends import reference
from sff_fast.distributions import Constant, Normal, Uniform
from sff_fast.plan import ParameterPlan, Segment

SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129, 255, 257, 511, 1023, 1024, 1025)
SHAPES = ((1, 32), (1, 96), (2, 64), (5, 256), (0, 0))


@pytest.fixture(scope="session")
def shim() -> Shim:
    return Shim(build())


def _agree(shim: Shim, make, base: torch.Tensor, **launch: int) -> None:
    expected, got = base.clone(), base.clone()
    reference.run(make(expected))
    shim.run(make(got), **launch)
    assert torch.equal(bits(got), bits(expected))


CASES = [
    (dtype, name, rounding)
    for dtype in DTYPES
    for name in DISTRIBUTIONS
    for rounding in ("nearest", "stochastic")[: 2 if dtype.itemsize == 2 else 1]
]


@pytest.mark.parametrize(("dtype", "name", "rounding"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_every_size_to_1025_gives_the_references_bits_at_whatever_address(shim, dtype, name, rounding):
    vector = 16 // dtype.itemsize
    for shift, grid, block in ((0, 1, 32), (5, 2, 96)):
        old = weights(1025, dtype)
        result = old.clone()
        reference.run(tasks_for(result, DISTRIBUTIONS[name], rounding=rounding, shift=shift))
        # Element i of a parameter does not depend on how many there are: all of them are parts of the longest.
        starts, end = [], 0
        for n in range(1026):
            starts.append(end + (n + shift) % vector)
            end += -(-(n + 2 * vector) // vector) * vector
        memory = torch.full((end,), 3.25, dtype=dtype)
        expected = memory.clone()
        for n, start in enumerate(starts):
            memory[start : start + n], expected[start : start + n] = old[:n], result[:n]
        (task,) = tasks_for(old, DISTRIBUTIONS[name], rounding=rounding, shift=shift)
        tasks = [dataclasses.replace(task, tensor=memory, size=(n,), memory_offset=start) for n, start in enumerate(starts) if n]
        assert shim.run(tasks, grid=grid, block=block, largest=300) == 1
        assert torch.equal(bits(memory), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_sizes_around_units_and_chunks_give_the_references_bits(shim, dtype, name):
    for n in SIZES:
        for rounding in ("nearest", "stochastic"):
            _agree(shim, lambda t, r=rounding: tasks_for(t, DISTRIBUTIONS[name], rounding=r), weights(n, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_misalignment_of_memory_and_draw_gives_the_references_bits(shim, dtype, name):
    rounding = "stochastic" if dtype.itemsize == 2 else "nearest"
    for lead in range(16 // dtype.itemsize):
        for shift in range(8):
            for n in (6, 75):
                _agree(
                    shim,
                    lambda t, lead=lead, shift=shift, n=n: tasks_for(
                        t[lead : lead + n], DISTRIBUTIONS[name], rounding=rounding, shift=shift
                    ),
                    weights(n + 16, dtype),
                )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("grid", "block"), SHAPES)
@pytest.mark.parametrize("largest", [1, 13, 64, 1 << 14])
def test_the_bits_do_not_depend_on_the_launch_shape_or_the_chunks(shim, dtype, grid, block, largest):
    for name in ("uniform", "normal", "trunc_normal"):
        _agree(
            shim,
            lambda t, name=name: tasks_for(t[1:], DISTRIBUTIONS[name], rounding="stochastic", shift=3),
            weights(700, dtype),
            grid=grid,
            block=block,
            largest=largest,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_boxes_and_stored_values_give_the_references_bits(shim, dtype):
    steps = Segment(Uniform(-1, 1), (5, 7), (20, 2), 3, "w", (7, 1), 11)
    rows = Segment(Normal(0, 1), (3, 150), (200, 1), 1200, "w", (150, 1), 400)
    plan = ParameterPlan("w", (2000,), dtype, (Segment.whole(Constant(0.5), 2000, "w"), steps, rows))
    for rounding in ("nearest", "stochastic"):
        _agree(shim, lambda t, r=rounding: table.build([(plan, t, 0.7, 0.3)], None, 3, r), weights(2000, dtype), largest=100)
        for strided in (lambda t: t.view(40, 50).t(), lambda t: t.view(8, 250)[:, ::2]):
            shape = strided(torch.empty(2000)).shape
            flat = ParameterPlan("w", tuple(shape), dtype, (Segment.whole(Normal(0, 1), math.prod(shape), "w"),))
            _agree(
                shim,
                lambda t, r=rounding, s=strided, p=flat: table.build([(p, s(t), 0.7, 0.3)], None, 3, r),
                weights(2000, dtype),
                largest=100,
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tables_of_stored_values_are_read_where_they_belong(shim, dtype):
    values = torch.linspace(-1, 1, 900)

    def stored(t: torch.Tensor, stride: int) -> list[table.BoxTask]:
        (task,) = tasks_for(t, Constant(0.0), rounding="stochastic")
        return [dataclasses.replace(task, distribution=table.TABLE, table=values, draw_strides=(stride,), draw_offset=5)]

    for stride in (1, 2, 0):
        _agree(shim, lambda t, s=stride: stored(t[3:], s), weights(403, dtype), largest=100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("boundary", [1 << 34, 1 << 35, 1 << 36])
def test_the_low_counter_word_may_wrap_inside_a_run(shim, dtype, boundary):
    for ahead in (1, 7, 77, 128):
        for distribution in (Uniform(0, 1), Normal(0, 1)):
            _agree(
                shim,
                lambda t, d=distribution, a=ahead: tasks_for(t, d, shift=boundary - a, rounding="stochastic"),
                weights(300, dtype),
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_specials_and_shrink_zero_follow_the_stream(shim, dtype):
    info = torch.finfo(dtype)
    special = [info.smallest_normal / 4, -info.smallest_normal / 2, math.inf, -math.inf, math.nan, info.max, 0.0, -0.0]
    old = torch.tensor(special * 9, dtype=dtype)
    for rounding in ("nearest", "stochastic"):
        for shrink in (0.5, 0.0):
            _agree(shim, lambda t, s=shrink, r=rounding: tasks_for(t, Constant(0.0), shrink=s, perturb=0.5, rounding=r), old)
    filled = torch.full((200,), math.nan, dtype=dtype)
    shim.run(tasks_for(filled, Uniform(-1, 1), shrink=0.0, perturb=1.0))
    assert not filled.isnan().any()


def test_memory_around_a_run_stays_as_it_was(shim):
    for dtype in DTYPES:
        for n in (1, 7, 33, 300):
            for lead in range(16 // dtype.itemsize):
                buffer = torch.full((n + 100,), 3.25, dtype=dtype)
                shim.run(tasks_for(buffer[lead + 20 : lead + 20 + n], Normal(0, 1), shift=lead))
                buffer[lead + 20 : lead + 20 + n] = 3.25
                assert (buffer == 3.25).all()


def test_one_launch_a_dtype_whatever_the_number_of_tensors(shim):
    tensors = [weights(n, dtype) for n in range(1, 200) for dtype in (torch.float32, torch.bfloat16)]
    some = [DISTRIBUTIONS[name] for name in ("normal", "uniform", "constant", "trunc_normal", "trunc_normal_wide")]
    pairs = [(whole(some[i % 5], t.numel(), t.dtype, f"p{i}"), t, 0.7, 0.3) for i, t in enumerate(tensors)]
    expected = [t.clone() for t in tensors]
    reference.run(table.build([(p, e, a, b) for (p, _, a, b), e in zip(pairs, expected)], None, 1))
    assert shim.run(table.build(pairs, None, 1)) == 2
    assert all(torch.equal(t, e) for t, e in zip(tensors, expected))


def test_a_kernel_with_more_registers_is_taken_only_where_it_is_needed(shim):
    def variant(dtype, name="uniform", shift=0, n=100, lead=0, rounding="nearest") -> int:
        tensor = weights(n + lead, dtype)[lead:]
        assert (tensor.data_ptr() - lead * dtype.itemsize) % 16 == 0
        return shim.variant(table.pack(tasks_for(tensor, DISTRIBUTIONS[name], shift=shift, rounding=rounding)), 1 << 14)

    plain, truncated, shifted = range(3)
    assert variant(torch.float32) == variant(torch.float32, lead=3, shift=3) == variant(torch.float64, shift=2) == plain
    assert variant(torch.bfloat16, shift=4) == variant(torch.float16, lead=1, shift=1, rounding="stochastic") == plain
    assert variant(torch.float32, "constant", shift=1) == variant(torch.float32, lead=1, n=3) == plain
    assert variant(torch.float32, "trunc_normal") == truncated
    assert variant(torch.float32, shift=1) == variant(torch.float64, shift=1) == variant(torch.bfloat16, lead=1) == shifted
    assert variant(torch.float32, "trunc_normal", shift=2) == shifted
    assert variant(torch.bfloat16, shift=4, rounding="stochastic") == shifted, "rounding numbers are eight a block"
    assert variant(torch.bfloat16, "constant", shift=1, rounding="stochastic") == shifted


def test_chunks_cover_every_element_once_and_begin_at_cache_lines(shim):
    x = torch.zeros(100_003)
    tasks = tasks_for(x[1:], Uniform(0, 1), shift=(1 << 34) - 5_000)
    chunks = shim.chunks(table.pack(tasks), 1 << 14)
    assert chunks["count"].sum() == 100_002
    ends = chunks["data"] + 4 * chunks["count"].astype(np.uint64)
    assert (chunks["data"][1:] == ends[:-1]).all()
    inner = [c for c in chunks[1:] if c["draw"] != 1 << 34]
    assert all(c["data"] % 128 == 0 for c in inner)
    assert len(inner) == len(chunks) - 2, "the counter's wrap is the only other cut"


def test_the_kernels_are_clean_under_address_and_undefined_behaviour_sanitizers():
    run_sanitized(HERE / "sanitize.cpp")
