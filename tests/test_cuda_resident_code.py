"""nvcc's code of the kernels that keep the optimizer's tables on the device: run by an interpreter, and its resources."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest
from cuda_code import ADAMW_SOURCE, ARCHITECTURES, compile_kernels, resources
from cuda_ptx import planted, programs
from ptx import Kernel, Launch, PtxError, Region, kernels

from sff_fast.optim.task import ADAMW_DTYPE, OPTIONS_DTYPE, set_coefficients, set_options

SOURCE = ADAMW_SOURCE.with_name("adamw_resident.cu")
PAGE = 480
"""Words that a launch carries."""
OPTIONS = {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "maximize": True, "seed": (1 << 63) + 5}


def _named(mangled: str) -> str:
    return re.search(r"\d(write|prepare)_kernel", mangled)[1]


@pytest.fixture(scope="module")
def compiled():
    return programs(SOURCE, _named)


def _region(array: np.ndarray, writable: bool = True) -> Region:
    return Region(array.ctypes.data, array.nbytes, writable)


def _prepared(kernel: Kernel, counts: np.ndarray, found_inf: float | None = None, lr: np.ndarray | None = None):
    """Tasks and step numbers after a launch of two blocks over them."""
    steps, tasks, rows = counts - 1, np.zeros(len(counts), ADAMW_DTYPE), np.zeros(len(counts), OPTIONS_DTYPE)
    set_options(rows, steps.ctypes.data + 4 * np.arange(len(counts)), OPTIONS, True)
    scale, found = np.float32([3.0]), np.float32([found_inf or 0.0])
    memory = [_region(tasks), _region(steps), *(_region(x, False) for x in (rows, scale, found))]
    if lr is not None:
        rows["lr"], rows["rate_type"] = lr.ctypes.data, 1 if lr.dtype == np.float32 else 2
        memory.append(_region(lr, False))
    origin = tasks.ctypes.data
    pointers = (scale.ctypes.data, found.ctypes.data if found_inf is not None else 0)
    argument = struct.pack("<QQI4xQQQQ", origin, rows.ctypes.data, len(counts), origin, origin, *pointers)
    Launch(kernel, argument, memory, 2, 32).run()
    return tasks, steps


def _expected(counts: np.ndarray, lr: float = OPTIONS["lr"]) -> np.ndarray:
    rows = np.zeros(len(counts), ADAMW_DTYPE)
    set_coefficients(rows, counts.astype(np.float64), {**OPTIONS, "lr": lr}, 1.0 / 3.0, True)
    return rows


def test_all_three_targets_have_both_kernels(compiled):
    assert sorted("+".join(compiled).split("+")) == ["sm_100", "sm_80", "sm_90"]
    assert all(sorted(found) == ["prepare", "write"] for found in compiled.values())


def test_the_ptx_prepares_a_step_with_the_hosts_bits(compiled):
    counts = np.float32([1, 2, 3, 7, 999, 1_000_000, *range(10, 90)])
    for found in compiled.values():
        for found_inf in (None, 0.0):
            tasks, steps = _prepared(found["prepare"], counts, found_inf)
            assert tasks.tobytes() == _expected(counts).tobytes()
            assert (steps == counts).all()
        for dtype in (np.float32, np.float64):
            lr = np.array([1e-2], dtype)
            assert _prepared(found["prepare"], counts, lr=lr)[0].tobytes() == _expected(counts, float(lr[0])).tobytes()


def test_the_ptx_leaves_everything_where_gradients_overflowed(compiled):
    for found in compiled.values():
        tasks, steps = _prepared(found["prepare"], np.float32([1, 5]), 1.0)
        assert not tasks.view(np.uint8).any()
        assert steps.tolist() == [0.0, 4.0]


def _written(kernel: Kernel, count: int) -> tuple[np.ndarray, np.ndarray]:
    words = np.random.default_rng(1).integers(0, 1 << 63, PAGE, dtype=np.uint64)
    to = np.zeros(PAGE + 3, np.uint64)
    argument = struct.pack("<QII", to.ctypes.data, count, 0) + words.tobytes()
    Launch(kernel, argument, [Region(to.ctypes.data, 8 * count)], 1, 64).run()
    return words, to


def test_the_ptx_writes_the_words_that_a_launch_carries_and_no_more(compiled):
    for found in compiled.values():
        for count in (1, 29, 64, 65, PAGE):
            words, to = _written(found["write"], count)
            assert (to[:count] == words[:count]).all()
            assert not to[count:].any()


@pytest.mark.parametrize(
    ("which", "old", "new", "said"),
    [
        ("write", "i < launch.count; i += blockDim.x", "i <= launch.count; i += blockDim.x", "out of bounds"),
        (
            "prepare",
            "i < launch.count; i += gridDim.x * blockDim.x",
            "i <= launch.count; i += gridDim.x * blockDim.x",
            "out of bounds",
        ),
        ("prepare", "blockIdx.x * blockDim.x + threadIdx.x", "threadIdx.x", "race"),
        ("prepare", "*step + 1.0f", "*step + 2.0f", None),
        ("prepare", "? 1.0 : 1.0 / ", "? 1.0 : ", None),
    ],
)
def test_every_planted_fault_is_seen(tmp_path, which, old, new, said):
    source = planted(tmp_path, {f"cuda/{SOURCE.name}": (old, new)}) / SOURCE.name
    path, _ = compile_kernels("sm_90", "ptx", source)
    found = {_named(symbol): kernel for symbol, kernel in kernels(path.read_text()).items()}
    counts = np.float32(range(1, 40))
    if said:
        with pytest.raises(PtxError, match=said):
            _written(found["write"], 5) if which == "write" else _prepared(found["prepare"], counts)
    else:
        tasks, _ = _prepared(found["prepare"], counts)
        assert tasks.tobytes() != _expected(counts).tobytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_spilled_and_no_stack_is_used(architecture):
    _, report = compile_kernels(architecture, "cubin", SOURCE)
    found = resources(report, _named)
    assert sorted(found) == ["prepare", "write"]
    for name, kernel in found.items():
        assert kernel["stack"] == kernel["spilled"] == 0, name
        assert kernel["registers"] <= 40, name
