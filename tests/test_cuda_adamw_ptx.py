"""nvcc's PTX of the optimizer's CUDA kernels, run by an interpreter: the CPU's bits, and planted faults are seen."""

from __future__ import annotations

import math
import struct

import adamw_tables as tables
import numpy as np
import pytest
import torch
from cuda_code import ADAMW_SOURCE, adamw_name, compile_kernels
from cuda_ptx import planted, programs
from cuda_shim.adamw import AdamWShim
from ptx import Launch, PtxError, Region, kernels

from sff_fast.backends import cpu
from sff_fast.optim.task import COMPENSATED, NEAREST, STOCHASTIC

STORING = {NEAREST: "nearest", STOCHASTIC: "stochastic", COMPENSATED: "compensated"}
LARGEST = 256


@pytest.fixture(scope="module")
def shim() -> AdamWShim:
    return AdamWShim()


@pytest.fixture(scope="module")
def compiled():
    return programs(ADAMW_SOURCE, adamw_name)


def _region(x: torch.Tensor | np.ndarray, writable: bool = True) -> Region:
    return Region(x.data_ptr() if isinstance(x, torch.Tensor) else x.ctypes.data, x.nbytes, writable)


def _run(shim, kernel, made, rows, factor=None, block: int = 32) -> None:
    """One step of a table of one parameter, with a kernel: two blocks."""
    chunks = shim.chunks(rows, LARGEST)
    memory = [_region(rows, False), _region(chunks, False)]
    memory += [_region(tensor, name != "grad") for name, tensor in made.items()]
    if factor is not None:
        memory.append(_region(factor, False))
    Launch(kernel, shim.arguments(rows, LARGEST, chunks, factor), memory, 2, block).run()


def _agree(shim, compiled, kind, made, **options) -> None:
    dtype, storing, state, amsgrad = kind
    expected = tables.copy(made)
    tables.step_on_cpu(tables.table([expected], storing, state, **options))
    for names, found in compiled.items():
        got = tables.copy(made)
        kernel = found[str(dtype).removeprefix("torch."), state, STORING[storing], amsgrad]
        _run(shim, kernel, got, tables.table([got], storing, state, **options))
        try:
            tables.assert_equal_bits(got, expected)
        except AssertionError as error:
            raise AssertionError(f"{names}: {error}") from error


def test_all_kernels_are_there_for_all_three_targets(compiled):
    assert sorted("+".join(compiled).split("+")) == ["sm_100", "sm_80", "sm_90"]
    assert all(len(found) == len(tables.KINDS) + 2 for found in compiled.values())


@pytest.mark.parametrize("kind", tables.KINDS, ids=lambda kind: "-".join(map(tables.label, kind)))
def test_the_ptx_gives_the_cpus_bits_aligned_and_not(shim, compiled, kind):
    for n, leads in ((275, (0,)), (261, (1, 0, 3, 2)), (8, (0,))):
        made = tables.arrays(*kind, n, leads)
        made["grad"][5] = math.nan if n > 8 else 0.5
        _agree(shim, compiled, kind, made, step=n, decoupled=n % 2 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", tables.KINDS, ids=lambda kind: "-".join(map(tables.label, kind)))
def test_the_ptx_gives_the_cpus_bits_at_more_sizes(shim, compiled, kind):
    for n in (1, 3, 4, 7, 9, 255, 256, 257, 511, 513, 700):
        for leads in ((0,), (1,), (0, 1, 2, 4)):
            _agree(shim, compiled, kind, tables.arrays(*kind, n, leads, seed=n), step=n)


def test_the_factor_of_clipping_is_read_on_the_device(shim, compiled):
    kind = (torch.float32, NEAREST, "float32", False)
    made = tables.arrays(*kind, 100)
    expected = tables.copy(made)
    rows = tables.table([expected], NEAREST, "float32", grad_scale=0.3)
    rows["grad_scale"] *= np.float32(0.7)
    tables.step_on_cpu(rows)
    for found in compiled.values():
        got = tables.copy(made)
        kernel = found["float32", "float32", "nearest", False]
        _run(shim, kernel, got, tables.table([got], NEAREST, "float32", grad_scale=0.3), np.float32([0.7]))
        tables.assert_equal_bits(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_norm_of_the_gradient_has_the_cpus_bits(shim, compiled, dtype):
    made = [tables.arrays(dtype, NEAREST, "float32", False, n) for n in (5, 66_000, 100)]
    rows = tables.table(made, NEAREST, "float32")
    total = cpu._cpu.sum_of_squares(rows.view(np.uint8), 1, "")
    for found in compiled.values():
        pieces = shim.chunks(rows, pieces=True)
        sums = np.zeros(len(pieces))
        memory = [_region(rows, False), _region(pieces, False), _region(sums), *(_region(m["grad"], False) for m in made)]
        Launch(found["sum"], shim.arguments(rows, 1 << 13, pieces, sums=sums), memory, 1, 32).run()
        assert np.add.accumulate(sums)[-1] == total
        clipped = np.zeros(16, np.uint8)
        argument = struct.pack("<QI4xdQdQ", sums.ctypes.data, len(sums), 0.5, 0, 2.0, clipped.ctypes.data)
        Launch(found["clip"], argument, [_region(sums, False), _region(clipped)], 1, 32).run()
        norm = math.sqrt(total) * 0.5
        assert clipped[:8].view(np.float64)[0] == norm
        assert clipped[8:12].view(np.float32)[0] == np.float32(2.0 / (norm + 1e-6))


# ---------------------------------------------------------------------- planted faults
KERNEL, UNIT, FORMULA = "cuda/adamw.cu", "cuda/adamw_unit.h", "core/adamw.h"
FAULTS = {
    "one element too many": (
        KERNEL,
        "const bool vectors = step.aligned && count >= width;\n    Packed<P, width> param, grad, compensation;\n    Packed<Int8",
        "const bool vectors = step.aligned;\n    Packed<P, width> param, grad, compensation;\n    Packed<Int8",
        "out of bounds",
    ),
    "alignment not asked": (KERNEL, "addresses % 16 == 0}", "true}", "misaligned"),
    "a block too far": (KERNEL, "block = at / kQuantizedBlock;", "block = at / kQuantizedBlock + 1;", "out of bounds|race"),
    "all lanes write the scale": (KERNEL, "if (lane == 0) *array_at<float>", "*array_at<float>", "race"),
    "a warp's last lanes leave": (KERNEL, "at < until; at += stride", "at < count; at += stride", "lanes of a warp"),
    "wrong dither": (UNIT, "dither + static_cast<uint32_t>(i) * kDitherStep", "dither + static_cast<uint32_t>(i)", None),
    "wrong sign": (UNIT, "? kSignedTop : kUnsignedTop", "? kUnsignedTop : kSignedTop", None),
    "wrong formula": (FORMULA, "return param - ", "return param + ", None),
}
"""File, text, what takes its place, and what the interpreter says of it; None: only the bits differ."""


def _int8_alone(text: str) -> str:
    """The kernels' source with one of them, which compiles in a moment."""
    begin = text.index("    if (bucket.param_dtype == kFloat32) return kernel_for_states")
    end = text.index("Origin origin_of(")
    return (
        text[:begin]
        + "    return bucket.count < 0 ? nullptr : adamw_kernel<float, Int8, false, kStoreNearest>;\n}\n\n"
        + text[end:]
    )


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_every_planted_fault_is_seen_and_the_kernel_without_one_passes(shim, tmp_path, fault):
    name, old, new, said = FAULTS[fault] if fault else (UNIT, "#pragma once", "#pragma once", None)
    source = planted(tmp_path, {name: (old, new)}) / "adamw.cu"
    source.write_text(_int8_alone(source.read_text()))
    path, _ = compile_kernels("sm_90", "ptx", source)
    kernel = next(k for symbol, k in kernels(path.read_text()).items() if "adamw_kernel" in symbol)
    made = tables.arrays(torch.float32, NEAREST, "int8", False, 300, (1,) if fault == "alignment not asked" else (0,))
    expected, got = tables.copy(made), tables.copy(made)
    tables.step_on_cpu(tables.table([expected], NEAREST, "int8"))
    rows = tables.table([got], NEAREST, "int8")
    if said:
        with pytest.raises(PtxError, match=said):
            _run(shim, kernel, got, rows)
        return
    _run(shim, kernel, got, rows)
    same = all(torch.equal(got[name], expected[name]) for name in got)
    assert same == (fault is None)
