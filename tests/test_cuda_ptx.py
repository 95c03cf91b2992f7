"""nvcc's PTX of the CUDA kernels, run by an interpreter on small sizes: the reference's bits, and planted faults are seen."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from cuda_code import VARIANTS, compile_kernels, kernel_name
from cuda_ptx import LARGEST, planted, programs, run
from cuda_shim import Shim, build
from kernel_cases import DISTRIBUTIONS, DTYPES, bits, tasks_for, weights
from ptx import PtxError, Region, kernels

from sff_fast import table
from sff_fast.backends import reference
from sff_fast.distributions import Constant, Normal, Uniform

CASES = [
    (dtype, name, rounding)
    for dtype in DTYPES
    for name in DISTRIBUTIONS
    for rounding in ("nearest", "stochastic")[: 2 if dtype.itemsize == 2 else 1]
]


@pytest.fixture(scope="module")
def shim() -> Shim:
    return Shim(build())


@pytest.fixture(scope="module")
def compiled():
    return programs()


def _kernel(shim, compiled_kernels, tasks, variant: str = "", largest: int = LARGEST):
    """The kernel that a table of one task takes, or that of another variant."""
    (task,) = tasks
    dtype = task.tensor.dtype
    stochastic = task.stochastic and dtype.itemsize == 2
    own = VARIANTS[shim.variant(table.pack(tasks), largest)]
    return compiled_kernels[str(dtype).removeprefix("torch."), stochastic, variant or own]


def _agree(shim, compiled, make, old: torch.Tensor, variant: str = "", largest: int = LARGEST) -> None:
    """Every program gives the reference's bits on ``make(tensor)``, with the kernel that it takes or another variant's."""
    expected = old.clone()
    reference.run(make(expected))
    for names, found in compiled.items():
        got = old.clone()
        tasks = make(got)
        run(shim, _kernel(shim, found, tasks, variant, largest), tasks, largest=largest)
        assert torch.equal(bits(got), bits(expected)), names


def test_all_three_targets_are_run(compiled):
    assert sorted("+".join(compiled).split("+")) == ["sm_100", "sm_80", "sm_90"]
    assert all(len(found) == 18 for found in compiled.values())


@pytest.mark.parametrize(("dtype", "name", "rounding"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_the_ptx_gives_the_references_bits_at_every_misalignment(shim, compiled, dtype, name, rounding):
    for lead in range(16 // dtype.itemsize):
        for shift, n in ((lead, 75), (lead + 3, 130)):  # congruent with the vectors, and not

            def make(t, lead=lead, shift=shift):
                return tasks_for(t[lead:], DISTRIBUTIONS[name], rounding=rounding, shift=shift)

            old = weights(n + lead, dtype)
            old[lead + 5] = float("nan")
            _agree(shim, compiled, make, old)


@pytest.mark.parametrize(("dtype", "name", "rounding"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_numbers_pass_from_thread_to_thread_and_a_warps_last_thread_only_gives(shim, compiled, dtype, name, rounding):
    unit = 8 if dtype.itemsize == 2 else 4
    for shift, n in ((1, 70 * unit + 3), (2, 31 * unit), (7, 63 * unit)):  # three rounds of a warp, one, and all but a tail
        _agree(
            shim,
            compiled,
            lambda t, shift=shift: tasks_for(t, DISTRIBUTIONS[name], rounding=rounding, shift=shift),
            weights(n, dtype),
            largest=1 << 14,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_variant_gives_the_references_bits_on_what_another_one_is_for(shim, compiled, dtype):
    for name, shift in (("uniform", 0), ("uniform", 1), ("normal", 5), ("constant", 3)):
        for variant in VARIANTS:
            _agree(
                shim,
                compiled,
                lambda t, n=name, s=shift: tasks_for(t, DISTRIBUTIONS[n], rounding="stochastic", shift=s),
                weights(150, dtype),
                variant,
            )


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "name", "rounding"), CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_the_ptx_gives_the_references_bits_at_every_pair_of_misalignments(shim, compiled, dtype, name, rounding):
    for lead, shift, n in itertools.product(range(16 // dtype.itemsize), range(8), (6, 77)):
        _agree(
            shim,
            compiled,
            lambda t, lead=lead, shift=shift: tasks_for(t[lead:], DISTRIBUTIONS[name], rounding=rounding, shift=shift),
            weights(n + lead, dtype),
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_sizes_chunks_and_zero_shrink_give_the_references_bits(shim, compiled, dtype):
    for n in (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 200):
        for k, distribution in enumerate((Normal(0, 1), Uniform(-1, 1))):
            rounding = "stochastic" if n % 2 else "nearest"
            shrink = 0.0 if (n + k) % 3 == 0 else 0.7
            _agree(
                shim,
                compiled,
                lambda t, d=distribution, r=rounding, s=shrink: tasks_for(t, d, rounding=r, shrink=s),
                weights(n, dtype),
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scattered_elements_and_stored_values_give_the_references_bits(shim, compiled, dtype):
    values = torch.linspace(-1, 1, 200)

    def scattered(t: torch.Tensor, distribution: object = Normal(0, 1)) -> list[table.BoxTask]:
        (task,) = tasks_for(t, distribution, rounding="stochastic")
        strides = {"memory_strides": (20, 2), "draw_strides": (1, 7), "logical_strides": (7, 1)}
        return [dataclasses.replace(task, size=(5, 7), memory_offset=3, draw_offset=9, logical_offset=2, **strides)]

    def stored(t: torch.Tensor) -> list[table.BoxTask]:
        (task,) = tasks_for(t[3:], Constant(0.0), rounding="stochastic")
        return [dataclasses.replace(task, distribution=table.TABLE, table=values, draw_offset=5)]

    for make in (scattered, lambda t: scattered(t, DISTRIBUTIONS["trunc_normal_wide"]), stored):
        _agree(shim, compiled, make, weights(103, dtype))


@pytest.mark.parametrize("boundary", [1 << 34, 1 << 35])
def test_the_low_counter_word_may_wrap(shim, compiled, boundary):
    for ahead in (1, 7, 40):
        _agree(
            shim,
            compiled,
            lambda t, a=ahead: tasks_for(t, Normal(0, 1), shift=boundary - a, rounding="stochastic"),
            weights(90, torch.bfloat16),
        )


PRODUCTS = 2 * 10 - 2
"""Products of a Philox block: two a round, but for the two that are computed once a chunk."""


def _products(shim, compiled_kernels, tasks) -> int:
    """64-bit products of 32-bit numbers that a launch computes."""
    launch = run(shim, _kernel(shim, compiled_kernels, tasks, largest=1 << 14), tasks, largest=1 << 14)
    return sum(count for text, count in launch.executed.items() if "mul.wide.u32" in text)


@pytest.mark.parametrize(("dtype", "rounding"), [*((d, "nearest") for d in DTYPES), (torch.bfloat16, "stochastic")], ids=str)
def test_a_thread_computes_as_many_philox_blocks_as_it_has_elements_for_wherever_the_draw_begins(shim, compiled, dtype, rounding):
    unit = 8 if dtype.itemsize == 2 else 4
    short, long = weights(2 * 31 * unit, dtype), weights(6 * 31 * unit, dtype)
    blocks_a_unit = unit // 4 + (rounding == "stochastic")
    for found in compiled.values():
        for shift in range(8):
            made = [tasks_for(x.clone(), Uniform(0, 1), shift=shift, rounding=rounding) for x in (short, long)]
            counts = [_products(shim, found, tasks) for tasks in made]
            congruent = shift % min(4, 16 // dtype.itemsize) == 0 and (rounding == "nearest" or shift == 0)
            # Four rounds of a warp; elsewhere its last thread has no vector of its own: 32 threads for 31 vectors.
            threads = 4 * 31 if congruent else 4 * 32
            more = counts[1] - counts[0]  # what is done once a chunk is in both
            blocks, others = divmod(more // threads, PRODUCTS)
            assert blocks == blocks_a_unit
            assert others <= (1 if rounding == "nearest" else 4), "an address, and the rounding stream's own two"
            vectors = 4 * 31 * unit * dtype.itemsize // 16
            assert more / PRODUCTS / vectors < (2 if rounding == "nearest" else 3) * 32 / 31 * 1.1


# ---------------------------------------------------------------------- planted faults
KERNEL, UNIT = "cuda/smooth.cu", "cuda/unit.h"
ENDS, PLACE = "    ends_of<T, Stochastic, Kind>(run, head, {});", "block(static_cast<uint32_t>(index >> Log){})"
FAULTS = {
    "out of bounds": (KERNEL, "lane * width < end; at += step", "lane * width < end + width; at += step", 0),
    "misaligned": ("cuda/chunks.h", "(0 - data) % 16", "(0 - data) % 8", 2),
    "race": (KERNEL, "(kWarp - 1) + lane : thread) * width", "(kWarp - 1) + lane : 0) * width", 0),
    "wrong tail": (
        KERNEL,
        "    ends_of<T, Stochastic, Kind>(run, head, tail);",
        "    ends_of<T, Stochastic, Kind>(run, head, count);",
        0,
    ),
    "wrong head": (KERNEL, "in_head ? g * width - phase : tail", "in_head ? g * width : tail", 3),
    "wrong round count": ("core/philox.h", "kPhiloxRounds = 10", "kPhiloxRounds = 9", 0),
    "wrong block index": (
        UNIT,
        "block(static_cast<uint32_t>(index >> Log))",
        "block(static_cast<uint32_t>(index >> Log) + 1)",
        0,
    ),
    "chunks left out": (KERNEL, "c < launch.count; c += gridDim.x", "c < launch.count; c += 2 * gridDim.x", 0),
}
"""File, text, what takes its place, and elements ahead in memory."""
EXCHANGE_FAULTS = {
    "from the wrong thread": (KERNEL, "__shfl_down_sync(kAllLanes, mine[i], 1)", "__shfl_down_sync(kAllLanes, mine[i], 2)", None),
    "a warp's last thread stores": (KERNEL, "(lane < kWarp - 1 && at < end)", "(at < end)", "race: "),
    "threads leave before their warp": (KERNEL, "at - lane * width < end; at += step", "at < end; at += step", "lanes of a warp"),
    "a draw too far": (UNIT, "(phase & 1) != 0 ? all[i + 1] : all[i];\n}\n\n// Moves", "all[i + 1];\n}\n\n// Moves", None),
}
"""File, text, what takes its place, and what the interpreter says of it; None: only the bits differ."""


def _fp32_alone(text: str, variant: str = "kPlain") -> str:
    """The kernels' source with one fp32 kernel as the only one, which compiles in a moment."""
    begin = text.index("    const bool stochastic = bucket.rounding")
    end = text.index("}  // namespace\n\ncudaError_t has_kernel")
    return text[:begin] + f"    return bucket.count < 0 ? nullptr : smooth_kernel<float, false, {variant}>;\n}}\n\n" + text[end:]


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_every_planted_fault_is_seen_and_the_kernel_without_one_passes(shim, tmp_path, fault):
    name, old, new, lead = FAULTS[fault] if fault else ("cuda/unit.h", "#pragma once", "#pragma once", 0)
    source = planted(tmp_path, {name: (old, new)}) / "smooth.cu"
    source.write_text(_fp32_alone(source.read_text()))
    path, _ = compile_kernels("sm_90", "ptx", source)
    (kernel,) = kernels(path.read_text()).values()
    assert kernel_name(kernel.name) == ("float32", False, "plain")
    before = weights(163 + lead, torch.float32)
    expected, got = before.clone(), before.clone()
    reference.run(tasks_for(expected[lead:], DISTRIBUTIONS["normal"], shift=lead % 2))
    tasks = tasks_for(got[lead:], DISTRIBUTIONS["normal"], shift=lead % 2)
    seen = {"out of bounds": "out of bounds: |race: ", "misaligned": "misaligned 16-byte access", "race": "race: "}
    if fault in seen:
        with pytest.raises(PtxError, match=seen[fault]):
            run(shim, kernel, tasks)
        return
    run(shim, kernel, tasks)
    assert torch.equal(got, expected) == (fault is None)


@pytest.mark.parametrize("fault", [None, *EXCHANGE_FAULTS])
def test_every_planted_fault_of_the_exchange_is_seen(shim, tmp_path, fault):
    name, old, new, said = EXCHANGE_FAULTS[fault] if fault else (UNIT, "#pragma once", "#pragma once", None)
    source = planted(tmp_path, {name: (old, new)}) / "smooth.cu"
    source.write_text(_fp32_alone(source.read_text(), "kShifted"))
    path, _ = compile_kernels("sm_90", "ptx", source)
    (kernel,) = kernels(path.read_text()).values()
    before = weights(4 * 40, torch.float32)  # more vectors than a warp has threads
    expected, got = before.clone(), before.clone()
    reference.run(tasks_for(expected, DISTRIBUTIONS["uniform"], shift=2))
    tasks = tasks_for(got, DISTRIBUTIONS["uniform"], shift=2)
    if said:
        with pytest.raises(PtxError, match=said):
            run(shim, kernel, tasks, largest=1 << 14)
        return
    run(shim, kernel, tasks, largest=1 << 14)
    assert torch.equal(got, expected) == (fault is None)


def test_a_write_outside_of_the_tensor_is_seen_even_by_four_bytes(shim, compiled):
    found = next(iter(compiled.values()))
    x = weights(256, torch.float32)
    tasks = tasks_for(x, DISTRIBUTIONS["normal"])
    with pytest.raises(PtxError, match="out of bounds: 16 bytes"):
        run(shim, _kernel(shim, found, tasks), tasks, [Region(x.data_ptr(), x.nbytes - 4)])
    with pytest.raises(PtxError, match="write into read-only memory"):
        run(shim, _kernel(shim, found, tasks), tasks, [Region(x.data_ptr(), x.nbytes, writable=False)])
