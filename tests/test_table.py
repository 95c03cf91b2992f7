"""Plans laid over memory: boxes, strides, overlaps, and what the native module refuses."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from kernel_cases import bits, run, tasks_for, whole

import sff_fast
from sff_fast import table
from sff_fast.backends import cpu, reference
from sff_fast.distributions import Constant, Normal, TruncNormal, Uniform
from sff_fast.errors import PlanError
from sff_fast.plan import ParameterPlan, Segment

NATIVE = ("reference", "baseline", "avx2", "avx512")


def expected_elements(parameter: ParameterPlan, old: torch.Tensor, shrink: float, perturb: float, seed: int) -> torch.Tensor:
    """Element by element from the plan's own definition: the last segment that holds an element decides."""
    flat = old.reshape(-1).clone()
    owner: dict[int, tuple[Segment, int]] = {}
    for segment in parameter.segments:
        for m in itertools.product(*(range(n) for n in segment.size)):
            element = segment.offset + sum(i * s for i, s in zip(m, segment.strides))
            owner[element] = (segment, segment.draw_offset + sum(i * s for i, s in zip(m, segment.draw_strides)))
    for element, (segment, index) in owner.items():
        one = flat[element : element + 1]
        alone = whole(segment.distribution, 1, old.dtype, segment.draw or "constant")
        tasks = table.build([(alone, one, shrink, perturb)], None, seed)
        reference.run([dataclasses.replace(t, draw_offset=index) for t in tasks])
    return flat.reshape(old.shape)


def _segment(distribution, size, strides, offset=0, draw="w", draw_strides=None, draw_offset=None):
    if isinstance(distribution, Constant):
        return Segment(distribution, size, strides, offset, "", (0,) * len(size), 0)
    return Segment(
        distribution, size, strides, offset, draw, draw_strides or strides, offset if draw_offset is None else draw_offset
    )


N, U = Normal(0, 1), Uniform(-1, 1)
CASES = {
    "padding row": ((5, 6), [_segment(N, (30,), (1,)), _segment(Constant(0.0), (6,), (1,), 12)]),
    "padding column": ((5, 6), [_segment(N, (30,), (1,)), _segment(Constant(0.0), (5,), (6,), 2)]),
    "two slabs": ((6, 4), [_segment(N, (2, 4), (4, 1)), _segment(U, (4, 4), (4, 1), 8)]),
    "column slabs": ((4, 9), [_segment(N, (4, 5), (9, 1)), _segment(U, (4, 4), (9, 1), 5)]),
    "slab in the middle": ((4, 5, 6), [_segment(N, (120,), (1,)), _segment(U, (4, 2, 3), (30, 6, 1), 8)]),
    "run across rows": ((4, 5), [_segment(N, (20,), (1,)), _segment(Constant(1.0), (7,), (1,), 3)]),
    "every other element": ((24,), [_segment(N, (24,), (1,)), _segment(U, (12,), (2,), 1)]),
    "transposed draw": ((4, 6), [_segment(N, (4, 6), (6, 1), draw_strides=(1, 4), draw_offset=0)]),
    "view of a flat draw": ((10,), [_segment(N, (10,), (1,), draw="flat", draw_offset=7)]),
    "three layers": (
        (6, 6),
        [_segment(N, (36,), (1,)), _segment(U, (3, 6), (6, 1), 6), _segment(Constant(2.0), (2, 2), (6, 1), 13)],
    ),
    "buried segment": ((8,), [_segment(N, (4,), (1,)), _segment(U, (8,), (1,))]),
    "scalar": ((), [_segment(N, (1,), (1,))]),
    "seven dimensions": ((2, 3, 2, 2, 2, 2, 2), [_segment(N, (192,), (1,))]),
}


def _layouts(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    n = max(1, int(np.prod(shape)))
    values = torch.linspace(-1, 1, n)
    layouts = {"contiguous": values.clone().reshape(shape)}
    if len(shape) >= 2:
        order = tuple(reversed(range(len(shape))))
        layouts["transposed"] = values.clone().reshape(tuple(shape[i] for i in order)).permute(order)
        padded = torch.zeros(*shape[:-1], shape[-1] + 3)
        padded[..., : shape[-1]] = values.reshape(shape)
        layouts["padded rows"] = padded[..., : shape[-1]]
    elif len(shape) == 1:
        spread = torch.zeros(2 * shape[0])
        spread[::2] = values
        layouts["every other"] = spread[::2]
    return layouts


@pytest.mark.parametrize("label", CASES)
def test_boxes_of_any_layout_equal_the_plans_definition(label):
    shape, segments = CASES[label]
    parameter = ParameterPlan("w", shape, torch.float32, tuple(segments))
    for layout, tensor in _layouts(shape).items():
        assert tuple(tensor.shape) == shape
        expected = expected_elements(parameter, tensor, 0.5, 0.5, 3)
        for backend in NATIVE:
            base = tensor._base if tensor._base is not None else tensor
            copy = base.clone()
            view = torch.as_strided(copy, tensor.shape, tensor.stride(), tensor.storage_offset())
            run(backend, table.build([(parameter, view, 0.5, 0.5)], None, 3))
            assert torch.equal(bits(view), bits(expected)), (layout, backend)


def test_memory_between_strided_elements_is_not_touched():
    buffer = torch.full((20,), 9.0)
    parameter = ParameterPlan("w", (10,), torch.float32, (Segment.whole(N, 10, "w"),))
    cpu.run(table.build([(parameter, buffer[::2], 0.0, 1.0)], None, 0))
    assert (buffer[1::2] == 9.0).all()
    assert (buffer[::2] != 9.0).all()


def test_a_box_on_top_of_a_draw_costs_few_tasks():
    # the middle columns of a big matrix are overwritten: the rest is two boxes, not two a row
    parameter = ParameterPlan("w", (1000, 64), torch.float32, (_segment(N, (64000,), (1,)), _segment(U, (1000, 8), (64, 1), 20)))
    assert len(table.build([(parameter, torch.zeros(1000, 64), 0.5, 0.5)], None, 0)) <= 5


def test_stochastic_rounding_follows_the_logical_index_of_the_parameter():
    # equal draws in two parameters, and the same parameter transposed in memory: rounding bits go by name and index
    old = torch.linspace(-1, 1, 60).reshape(6, 10).to(torch.bfloat16)
    parameter = ParameterPlan("w", (6, 10), torch.bfloat16, (Segment.whole(N, 60, "w"),))
    results = []
    for tensor in (old.clone(), old.t().contiguous().t()):
        for backend in NATIVE:
            copy = tensor.clone(memory_format=torch.preserve_format)
            run(backend, table.build([(parameter, copy, 0.5, 0.5)], None, 3, "stochastic"))
            results.append(bits(copy))
    assert all(torch.equal(r, results[0]) for r in results)
    other = old.clone()
    cpu.run(table.build([(dataclasses.replace(parameter, name="v"), other, 0.5, 0.5)], None, 3, "stochastic"))
    assert not torch.equal(bits(other), results[0])


# ---------------------------------------------------------------------- distributions
def test_a_uniform_narrower_than_the_stream_can_hold_is_refused():
    with pytest.raises(PlanError, match="width"):
        table.parameters_of(Uniform(0.0, 1e-35))
    assert table.parameters_of(Uniform(1.0, 1.0))[1][1] == 0.0


def test_a_truncated_normal_without_room_is_a_constant():
    # two bounds that are one number in float32
    code, p = table.parameters_of(TruncNormal(0.0, 1.0, 2.0, 2.0 + 1e-9))
    assert (code, p[0]) == (table.CONSTANT, 2.0)


# ---------------------------------------------------------------------- refusals of the native module
def _record(**changes) -> np.ndarray:
    packed = table.pack(tasks_for(torch.zeros(64), N)).view(table.TASK_DTYPE).copy()
    for key, value in changes.items():
        if isinstance(value, tuple):
            packed[0][key][: len(value)] = value
        else:
            packed[0][key] = value
    return packed.view(np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"rank": 7}, "rank 7"),
        ({"dtype": 4}, "dtype code 4"),
        ({"distribution": 9}, "distribution code 9"),
        ({"rounding": 2}, "rounding code 2"),
        ({"size": (-1,)}, "negative size"),
        ({"size": (1 << 61,)}, "2\\^60"),
        ({"size": (65,)}, "outside of its 64 elements"),
        ({"memory_offset": -1}, "outside of its 64 elements"),
        ({"memory_strides": (-1,)}, "outside of its 64 elements"),
        ({"memory_strides": (1 << 62,)}, "outside of its 64 elements"),
        ({"memory_strides": (0,)}, "stride of 0"),
        ({"draw_offset": -1}, "draw index"),
        ({"draw_strides": (-1,)}, "draw index"),
        ({"draw_strides": (1 << 62,)}, "draw index"),
        ({"logical_offset": -5}, "logical index"),
        ({"shrink": float("nan")}, "not finite"),
        ({"perturb": float("inf")}, "not finite"),
        ({"p": (float("nan"),)}, "not finite"),
        ({"data": 0}, "null"),
        ({"data": 2}, "aligned"),
        ({"distribution": 4}, "table is null"),
        ({"distribution": 1, "p": (0.0, 1e-35)}, "narrower"),
    ],
    ids=str,
)
def test_an_invalid_table_is_refused_with_what_is_wrong(changes, message):
    cpu._cpu.check(_record())
    with pytest.raises(ValueError, match=message):
        cpu._cpu.check(_record(**changes))


def test_a_box_of_more_elements_than_its_memory_is_refused_before_they_are_walked():
    ones = {f"{kind}_strides": (1,) * 6 for kind in ("memory", "draw", "logical")}
    cpu._cpu.check(_record(rank=6, size=(2,) * 6, **(ones | {"memory_strides": (32, 16, 8, 4, 2, 1)})))
    with pytest.raises(ValueError, match="task 0: writes memory that task 0 writes too"):
        cpu._cpu.check(_record(rank=2, size=(8, 8), **ones))
    with pytest.raises(ValueError, match="task 0: has more elements than its memory"):  # 1.8 million in 64 places
        cpu._cpu.check(_record(rank=6, size=(11,) * 6, **ones))


def test_a_table_that_reads_past_its_stored_draws_is_refused():
    stored = np.zeros(10, dtype=np.float32)
    with pytest.raises(ValueError, match="outside of its table of 10"):
        cpu._cpu.check(_record(distribution=4, table=stored.ctypes.data, table_elements=10))


def test_bytes_of_another_size_and_no_threads_are_refused():
    with pytest.raises(ValueError, match="multiple of"):
        cpu._cpu.smooth(np.zeros(17, dtype=np.uint8), 1)
    with pytest.raises(ValueError, match="threads"):
        cpu._cpu.smooth(_record(), 0)
    with pytest.raises(ValueError, match="unknown instruction set 'sse9'"):
        cpu._cpu.smooth(_record(), 1, "sse9")


def test_a_table_that_is_kept_is_checked_as_it_is_made_and_each_run_s_arguments_as_it_runs():
    with pytest.raises(ValueError, match="multiple of"):
        cpu._cpu.Table(np.zeros(17, dtype=np.uint8))
    with pytest.raises(ValueError, match="aligned"):
        cpu._cpu.Table(_record(data=2))
    kept = cpu._cpu.Table(_record())
    with pytest.raises(ValueError, match="threads"):
        kept.smooth(0, 0, 0)
    with pytest.raises(ValueError, match="unknown instruction set 'sse9'"):
        kept.smooth(0, 0, 1, "sse9")


def test_a_table_that_is_kept_is_a_copy_and_runs_with_the_seeds_that_it_is_given():
    for rounding in ("nearest", "stochastic"):
        x, y = torch.ones(3_000, dtype=torch.bfloat16), torch.ones(3_000, dtype=torch.bfloat16)
        packed = table.pack(tasks_for(x, N, rounding=rounding)).view(table.TASK_DTYPE).copy()
        expected = table.pack(tasks_for(y, N, rounding=rounding)).view(table.TASK_DTYPE).copy()
        expected["seed"], expected["round_seed"] = 5, 6
        kept = cpu._cpu.Table(packed.view(np.uint8))
        packed["data"] = 0
        assert kept.smooth(5, 6, 2) == cpu._cpu.smooth(expected.view(np.uint8), 2)
        assert torch.equal(x, y)


def test_tasks_that_write_an_element_twice_are_refused_and_neighbours_are_not():
    x = torch.zeros(12, 12)
    left, right = x[:, :6].t(), x[:, 6:]
    parameter = ParameterPlan("w", (6, 12), torch.float32, (Segment.whole(N, 72, "w"),))
    other = ParameterPlan("v", (12, 6), torch.float32, (Segment.whole(N, 72, "v"),))
    cpu._cpu.check(table.pack(table.build([(parameter, left, 0.5, 0.5), (other, right, 0.5, 0.5)], None, 0)))
    with pytest.raises(ValueError, match="task 1: writes memory that task 0 writes too"):
        cpu._cpu.check(table.pack(table.build([(parameter, left, 0.5, 0.5), (other, x[:, 5:11], 0.5, 0.5)], None, 0)))
    with pytest.raises(ValueError, match="task 0: writes memory that task 0 writes too"):
        cpu._cpu.check(_record(rank=2, size=(4, 8), memory_strides=(4, 1), draw_strides=(8, 1), logical_strides=(8, 1)))


def test_a_refused_table_writes_nothing():
    x, y = torch.ones(64), torch.ones(64)
    packed = table.pack(tasks_for(x, N) + tasks_for(y, N)).view(table.TASK_DTYPE).copy()
    packed[1]["dtype"] = 77
    with pytest.raises(ValueError, match="task 1"):
        cpu._cpu.smooth(packed.view(np.uint8), 1)
    assert (x == 1).all()
    assert (y == 1).all()


# ---------------------------------------------------------------------- plans that a tracer makes
class Shared(torch.nn.Module):
    """Views of one flat draw at two offsets, a clone of a draw, and a row repeated."""

    def __init__(self) -> None:
        super().__init__()
        flat = torch.empty(40).normal_()
        self.first = torch.nn.Parameter(flat[:24].clone().view(4, 6))
        self.second = torch.nn.Parameter(flat[10:40].clone().view(5, 6))
        row = torch.empty(6).uniform_(-1, 1)
        self.rows = torch.nn.Parameter(row.repeat(3, 1))
        self.row = torch.nn.Parameter(row.clone() * 2)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_parameters_that_hold_one_draw_hold_one_sample(backend):
    plan = sff_fast.trace(Shared)
    model = Shared()
    sff_fast.fill_(model, plan, seed=8, backend=backend)
    assert torch.equal(model.first.flatten()[10:], model.second.flatten()[:14])
    assert torch.equal(model.rows[0], model.rows[1])
    assert torch.equal(model.rows[0], model.rows[2])
    # 2 * u in [-2, 2] is another interval's affine map of the same words: equal up to one rounding
    assert torch.allclose(model.row, 2 * model.rows[0], rtol=0, atol=2**-22)
    assert len(model.first.unique()) == 24
    for name, p in model.named_parameters():
        assert torch.equal(plan.sample(name, 8), p)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_values_that_are_not_elementwise_are_mixed_in_from_a_table(backend):
    class Orthogonal(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.nn.init.orthogonal_(torch.empty(6, 4)))
            self.fixed = torch.nn.Parameter(torch.arange(5.0))

    plan, model = sff_fast.trace(Orthogonal), Orthogonal()
    sff_fast.fill_(model, plan, seed=3, backend=backend)
    assert torch.allclose(model.w.T @ model.w, torch.eye(4), atol=1e-5)
    assert torch.equal(model.fixed, torch.arange(5.0))
    other = Orthogonal()
    with torch.no_grad():
        other.w.zero_()
    sff_fast.smooth_(other, plan, alpha=0.5, seed=3, backend=backend)
    assert torch.equal(other.w, 0.5 * model.w)
