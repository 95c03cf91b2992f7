"""The optimizer's unmodified CUDA kernels, run on the CPU by a shim: the CPU kernels' bits, whatever the launch."""

from __future__ import annotations

import math

import adamw_tables as tables
import numpy as np
import optim_cases as cases
import pytest
import torch
from cuda_shim import HERE, run_sanitized
from cuda_shim.adamw import AdamWShim

from sff_fast.backends import cpu
from sff_fast.optim import FusedAdamW, kernels
from sff_fast.optim.task import COMPENSATED, NEAREST, STOCHASTIC

SIZES = (1, 3, 7, 8, 9, 31, 32, 33, 63, 255, 256, 257, 511, 513, 1024, 1025)
SHAPES = ((1, 32), (1, 96), (3, 64), (5, 256), (0, 0))


@pytest.fixture(scope="module")
def shim() -> AdamWShim:
    return AdamWShim()


def _agree(shim, made, storing, state, launch=None, **options) -> None:
    expected, got = tables.copy(made), tables.copy(made)
    tables.step_on_cpu(tables.table([expected], storing, state, **options))
    assert shim.step(tables.table([got], storing, state, **options), **(launch or {})) == 1
    tables.assert_equal_bits(got, expected)


@pytest.mark.parametrize(("dtype", "storing", "state", "amsgrad"), tables.KINDS, ids=tables.label)
def test_small_sizes_give_the_cpus_bits(shim, dtype, storing, state, amsgrad):
    for n in SIZES:
        _agree(shim, tables.arrays(dtype, storing, state, amsgrad, n), storing, state, step=n, decoupled=n % 2 == 0)


@pytest.mark.parametrize(("dtype", "storing", "state", "amsgrad"), tables.KINDS, ids=tables.label)
def test_every_misalignment_of_every_array_gives_the_cpus_bits(shim, dtype, storing, state, amsgrad):
    for k in range(16):
        for leads in ((k,), (0, k), (k, 0, 0), (1, 2, 3, k)):
            _agree(shim, tables.arrays(dtype, storing, state, amsgrad, 300, leads), storing, state)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "storing", "state", "amsgrad"), tables.KINDS, ids=tables.label)
def test_every_size_to_1025_gives_the_cpus_bits(shim, dtype, storing, state, amsgrad):
    for n in range(1, 1026):
        made = tables.arrays(dtype, storing, state, amsgrad, n, (n % 5, n % 3, 0), seed=n)
        _agree(shim, made, storing, state, step=n, maximize=n % 2 == 0)


@pytest.mark.parametrize(("grid", "block"), SHAPES)
@pytest.mark.parametrize("largest", [256, 512, 1 << 13])
def test_the_bits_do_not_depend_on_the_launch_shape_or_the_chunks(shim, grid, block, largest):
    for dtype, storing, state in ((torch.float32, NEAREST, "float32"), (torch.bfloat16, STOCHASTIC, "int8")):
        made = tables.arrays(dtype, storing, state, True, 2_100)
        _agree(shim, made, storing, state, {"grid": grid, "block": block, "largest": largest})


@pytest.mark.parametrize(("dtype", "storing", "state", "amsgrad"), tables.KINDS, ids=tables.label)
def test_specials_in_gradients_and_states_give_the_cpus_bits(shim, dtype, storing, state, amsgrad):
    special = [math.nan, math.inf, -math.inf, 0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal / 2]
    made = tables.arrays(dtype, storing, state, amsgrad, 700)
    made["grad"][:63] = torch.tensor(special * 9).to(dtype)
    made["param"][256:319] = torch.tensor(special * 9).to(dtype)
    if state == "int8":
        made["exp_avg_scale"][2] = math.nan
        made["exp_avg_sq_scale"][1] = 1e-38
    else:
        made["exp_avg"][400:463] = torch.tensor(special * 9).to(made["exp_avg"].dtype)
        made["exp_avg_sq"][500:563] = torch.tensor(special * 9).abs().to(made["exp_avg_sq"].dtype)
    for options in ({}, {"eps": 0.0, "weight_decay": 0.0}, {"decoupled": False, "grad_scale": 1e-3}):
        _agree(shim, made, storing, state, **options)


def test_one_launch_a_kind_whatever_the_number_of_tensors(shim):
    many = [tables.arrays(torch.float32, NEAREST, "float32", False, n) for n in range(1, 300)]
    few = [tables.arrays(torch.bfloat16, COMPENSATED, "int8", True, n) for n in (5, 900)]
    expected, got = [tables.copy(m) for m in (*many, *few)], [tables.copy(m) for m in (*many, *few)]

    def rows(made):
        return np.concatenate([tables.table(made[:299], NEAREST, "float32"), tables.table(made[299:], COMPENSATED, "int8")])[::-1]

    tables.step_on_cpu(np.ascontiguousarray(rows(expected)))
    assert shim.step(np.ascontiguousarray(rows(got)), grid=0) == 2
    for a, b in zip(got, expected):
        tables.assert_equal_bits(a, b)


def test_chunks_cover_every_element_once_and_begin_at_blocks_of_256(shim):
    made = [tables.arrays(torch.float32, NEAREST, "int8", False, n) for n in (70_000, 0, 1, 256)]
    rows = tables.table(made, NEAREST, "int8")
    for largest, pieces in ((512, False), (1 << 13, False), (1 << 13, True)):
        chunks = shim.chunks(rows, largest, pieces)
        assert (chunks["begin"] % 256 == 0).all()
        for task, n in ((0, 70_000), (2, 1), (3, 256)):
            mine = chunks[chunks["task"] == task]
            assert (mine["begin"] == np.concatenate([[0], np.cumsum(mine["count"])[:-1]])).all()
            assert mine["count"].sum() == n
        assert not (chunks["task"] == 1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_sum_of_squares_has_the_cpus_bits(shim, dtype):
    generator = torch.Generator().manual_seed(5)
    sizes = (1, 5, 15, 16, 17, 1000, 65_536, 65_537, 200_003)
    made = []
    for n in sizes:
        made.append(tables.arrays(dtype, NEAREST, "float32", False, n))
        made[-1]["grad"].copy_((torch.randn(n, generator=generator) * 3).to(dtype))
    rows = tables.table(made, NEAREST, "float32")
    expected = cpu._cpu.sum_of_squares(rows.view(np.uint8), 1, "")
    total, norm, factor = shim.clip(rows, 0.5, 2.0)
    assert total == expected > 0
    assert norm == math.sqrt(expected) * 0.5
    assert factor == np.float32(2.0 / (norm + 1e-6))
    assert shim.clip(rows, 0.5, norm * 2)[2] == 1.0
    made[3]["grad"][3] = math.nan
    assert math.isnan(shim.clip(rows, 1.0, 1.0)[2])


def test_without_pieces_the_norm_is_zero(shim):
    assert shim.clip(tables.table([], NEAREST, "float32"), 1.0, 1.0) == (0.0, 0.0, 1.0)


def test_the_factor_of_clipping_multiplies_the_gradients_scale(shim):
    made = tables.arrays(torch.bfloat16, NEAREST, "bfloat16", False, 600)
    expected, got = tables.copy(made), tables.copy(made)
    rows = tables.table([expected], NEAREST, "bfloat16", grad_scale=0.3)
    rows["grad_scale"] *= np.float32(0.7)
    tables.step_on_cpu(rows)
    shim.step(tables.table([got], NEAREST, "bfloat16", grad_scale=0.3), factor=0.7)
    tables.assert_equal_bits(got, expected)


@pytest.mark.parametrize("state", ["float32", "bfloat16", "int8"])
def test_ten_steps_of_the_optimizer_give_the_cpus_bits(shim, state, monkeypatch):
    results = []
    for run in (None, lambda table, device, factor=None: shim.step(np.ascontiguousarray(table))):
        if run is not None:
            monkeypatch.setattr(kernels, "step", run)
        params = cases.parameters(torch.bfloat16)
        options = {"state_dtype": state, "stochastic_rounding": True, "amsgrad": True, "max_norm": 1.0}
        optimizer = FusedAdamW(params, lr=1e-2, weight_decay=0.1, **options)
        cases.train(optimizer, params, 10)
        results.append(cases.everything(optimizer, params))
    cases.assert_equal_bits(*results)


def test_the_kernels_are_clean_under_address_and_undefined_behaviour_sanitizers():
    run_sanitized(HERE / "adamw_sanitize.cpp")
