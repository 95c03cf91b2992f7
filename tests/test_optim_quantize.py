"""The int8 maps: exact values, the proven error bound, and encoding what was decoded."""

from __future__ import annotations

import math

import kernel_cases
import numpy as np
import pytest
import torch

from sff_fast.backends import cpu
from sff_fast.optim.quantize import SMALLEST_SCALE, decode, encode
from sff_fast.optim.task import ADAMW_DTYPE

CODES = torch.arange(256, dtype=torch.int64).to(torch.uint8)
LAST = {True: 127, False: 255}


def scales(count: int, seed: int = 0) -> torch.Tensor:
    """Every power of two from the smallest scale up to 2**127, and random mantissas between them."""
    powers = 2.0 ** torch.arange(-90, 128, dtype=torch.float64)
    mantissas = 1 + torch.rand(count, 218, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    edges = torch.tensor([1.0, 1 + 2.0**-23, 2 - 2.0**-23], dtype=torch.float64)
    return (torch.cat([edges[:, None].expand(3, 218), mantissas]) * powers).reshape(-1).float()


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_holds_zero_and_one_exactly_and_grows(signed: bool) -> None:
    values = decode(CODES, torch.ones(1), signed)
    assert float(values[0]) == 0.0
    assert float(values[LAST[signed]]) == 1.0
    rising = values[: LAST[signed] + 1]
    assert bool((rising[1:] > rising[:-1]).all())
    if signed:
        assert float(values[255]) == -1.0
        assert torch.equal(values[128:], -values[:128])


def test_the_map_is_what_its_definition_says() -> None:
    def y(bits: int) -> float:
        return float(torch.tensor([bits], dtype=torch.int32).view(torch.float32))

    signed, unsigned = decode(CODES, torch.ones(1), True), decode(CODES, torch.ones(1), False)
    for k in range(128):
        assert float(signed[k]) == pytest.approx((y(0x3F800000 + (k << 19)) - 1) / 247, rel=1e-7)
    for k in range(256):
        assert float(unsigned[k]) == pytest.approx((y(0x3F800000 + (k << 20)) - 1) / (2.0**31 * 1.875 - 1), rel=1e-7)


@pytest.mark.parametrize("signed", [True, False])
def test_encoding_a_decoded_block_gives_its_codes_and_its_scale_for_every_code_and_scale(signed: bool) -> None:
    for scale in scales(16).split(1000):
        codes = CODES.repeat(len(scale))
        again, again_scale = encode(decode(codes, scale, signed), signed)
        assert torch.equal(again, codes)
        assert torch.equal(again_scale, scale)


@pytest.mark.parametrize("dither", [1 << 14, 1 << 31, (1 << 32) - (1 << 15)])
def test_hardly_any_dither_moves_a_number_that_has_a_code(dither: int) -> None:
    """A decoded number lies a few roundings off its code: all dithers but a few millionths of them keep it."""
    for scale in scales(4).split(1000):
        codes = CODES.repeat(len(scale))
        again, _ = encode(decode(codes, scale, False), False, torch.full((codes.numel(),), dither))
        assert torch.equal(again, codes)


@pytest.mark.parametrize("signed", [True, False])
def test_the_error_stays_within_its_proven_bound(signed: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1 << 20, generator=generator) * 10.0 ** (torch.rand(1 << 20, generator=generator) * 12 - 12)
    x = x if signed else x.abs()
    codes, scale = encode(x, signed)
    s = scale.double().repeat_interleave(256)
    error, size = (decode(codes, scale, signed).double() - x.double()).abs(), x.double().abs()
    bound = 2.0**-5 * (size + s / 247) if signed else 2.0**-4 * (size + s * 2.0**-30)
    assert bool((error <= bound * (1 + 1e-6)).all())
    assert float((error / bound).max()) > 0.9  # the bound is sharp


@pytest.mark.parametrize("signed", [True, False])
def test_nearest_is_nearest(signed: bool) -> None:
    values = decode(CODES, torch.ones(1), signed)[: LAST[signed] + 1].double()
    x = torch.rand(1 << 16, generator=torch.Generator().manual_seed(5)).pow(6)
    x[::256] = 1.0  # the scale
    codes, _ = encode(x, signed)
    chosen = (values[codes.long()] - x.double()).abs()
    best = (values[:, None] - x.double()[None, :]).abs().amin(dim=0)
    first = values[1]
    away = (chosen - best)[x > (first if not signed else 0)]
    assert float(away.max()) < 1e-7


def test_dither_is_right_on_average() -> None:
    n = 1 << 12
    x = torch.full((256,), 0.3)
    x[0] = 1.0
    total = torch.zeros(256, dtype=torch.float64)
    for k in range(n):
        codes, scale = encode(x, False, torch.full((256,), (k << 20) + (1 << 19)))
        total += decode(codes, scale, False)
    assert torch.allclose(total / n, x.double(), rtol=2e-5)


@pytest.mark.parametrize("signed", [True, False])
def test_blocks_that_are_tiny_or_not_finite(signed: bool) -> None:
    x = torch.ones(4 * 256 + 3)
    x[:256] = SMALLEST_SCALE / 2
    x[300] = math.inf
    x[600] = math.nan
    codes, scale = encode(x, signed)
    back = decode(codes, scale, signed)
    assert scale[0] == 0
    assert bool((back[:256] == 0).all())
    assert bool(back[256:768].isnan().all())
    assert bool((back[768:] == 1).all())
    assert len(scale) == 5


def test_a_positive_number_keeps_a_code_above_zero() -> None:
    x = torch.full((256,), 1e-25)
    x[0], x[1] = 1.0, 0.0
    codes, _ = encode(x, False)
    assert codes[1] == 0
    assert bool((codes[2:] == 1).all())


DITHER_STEP = 0xC13FA9A9


def first_step(isa: str, grads: list[torch.Tensor], dither: int = 0) -> list[list[torch.Tensor]]:
    """A step from states of 0 with both betas 0, whose moments are the gradient and its square, bit by bit.

    Returns:
        For each gradient the signed codes, their scales, the unsigned codes and their scales.
    """
    results = []
    for grad in grads:
        n, blocks = grad.numel(), -(-grad.numel() // 256)
        param, codes, scales = torch.zeros(n), torch.zeros(2, n, dtype=torch.uint8), torch.zeros(2, blocks)
        task = np.zeros(1, ADAMW_DTYPE)
        task["param"], task["grad"] = param.data_ptr(), grad.data_ptr()
        task["exp_avg"], task["exp_avg_sq"] = codes[0].data_ptr(), codes[1].data_ptr()
        task["exp_avg_scale"], task["exp_avg_sq_scale"] = scales[0].data_ptr(), scales[1].data_ptr()
        task["elements"], task["state_type"], task["dither"] = n, 2, dither
        for name in ("grad_scale", "decay", "one_minus_beta1", "one_minus_beta2", "correction", "eps", "step_size"):
            task[name] = 1.0
        with kernel_cases.forced_isa(isa):
            cpu._cpu.adamw(task.view(np.uint8), 1, isa)
        results.append([codes[0], scales[0], codes[1], scales[1]])
    return results


def dithers(n: int, first: int) -> torch.Tensor:
    return (torch.arange(n) * DITHER_STEP + first) % (1 << 32)


@pytest.mark.parametrize("isa", kernel_cases.ISAS)
def test_kernels_encode_as_the_reference_does_whatever_blocks_follow_each_other(isa: str) -> None:
    """Ordinary blocks, blocks of zeros, with single zeros, of a wide range, not finite, and a last short one, in every order."""
    generator = torch.Generator().manual_seed(6)

    def block(kind: int) -> torch.Tensor:
        x = torch.randn(256, generator=generator)
        if kind == 1:
            x = torch.zeros(256)
        if kind == 2:
            x[::7] = 0.0
        if kind == 3:  # squares down to 2**-60 of the largest one: below the first code, which is 2**-35
            x = x * 2.0 ** (-30 * torch.rand(256, generator=generator))
        if kind == 4:
            x[77] = math.inf
        if kind == 5:
            x[200] = math.nan
        return x

    order = torch.randint(6, (60,), generator=generator).tolist()
    grads = [torch.cat([*(block(kind) for kind in order), block(3)[:77]]), block(2)[:19]]
    for grad, result in zip(grads, first_step(isa, grads, 12345)):
        signed = encode(grad, True)
        unsigned = encode(grad * grad, False, dithers(grad.numel(), 12345))
        for a, b in zip(result, (*signed, *unsigned)):
            assert torch.equal(a.nan_to_num(nan=-1.0), b.nan_to_num(nan=-1.0)) if a.is_floating_point() else torch.equal(a, b)


@pytest.mark.parametrize("isa", kernel_cases.ISAS)
def test_kernels_raise_what_is_below_code_1_and_leave_zeros(isa: str) -> None:
    grad = torch.full((512,), 1e-12)
    grad[:3] = torch.tensor([1.0, 0.0, -0.0])
    ((_, _, codes, _),) = first_step(isa, [grad])
    assert codes[:3].tolist() == [255, 0, 0]
    assert bool((codes[3:256] == 1).all())


@pytest.mark.parametrize("isa", kernel_cases.ISAS)
def test_no_dither_carries_the_largest_number_over_the_last_code(isa: str) -> None:
    """Rounding puts some of the largest numbers a bit above the last code, and the largest dither would end at code 256."""
    element, largest = 100, (1 << 32) - 1
    first = (largest - element * DITHER_STEP) % (1 << 32)
    grads = [torch.full((256,), 1.0 + k / 64) for k in range(64)]
    for _, _, codes, _ in first_step(isa, grads, first):
        assert bool((codes == 255).all())
