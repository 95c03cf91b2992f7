"""What mutation testing (tools/mutate_kernels.py) found that no other test noticed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_cases import ISAS, bits, forced_isa, run, tasks_for

from sff_fast import FusedAdamW, table
from sff_fast.backends import cpu, reference
from sff_fast.distributions import Constant, Normal, TruncNormal, Uniform

NANS = {torch.float32: -0x3EDCBB, torch.bfloat16: -0x3B, torch.float16: -0x1BB, torch.float64: -0x7EDCBA9876543}
"""Bits of a NaN with a sign and a payload."""


@pytest.mark.parametrize("isa", ["reference", *ISAS])
@pytest.mark.parametrize(("sign", "expected"), [(1, 1 + 2.0**-11 + 2.0**-23), (-1, 1 + 2.0**-11), (0, 1 + 2.0**-11)])
def test_a_multiply_add_beside_a_tie_of_float32_is_rounded_once(isa, sign, expected):
    # the product 1 + 2^-11 + 2^-24 is a tie, and what is added lies beyond the 53 bits of a double that rounds before
    x = torch.full((37,), 1 + 2.0**-12)
    tasks = tasks_for(x, Constant(sign * 2.0**-60), shrink=1 + 2.0**-12, perturb=1.0)
    run(isa, tasks)
    assert torch.equal(bits(x), bits(torch.full((37,), expected)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_of_a_long_gradient_is_that_of_all_its_pieces(isa, dtype):
    parameter = torch.nn.Parameter(torch.zeros(3 * 65_536 + 1_001, dtype=dtype))
    parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    parameter.grad[:65_536] *= 3  # so that no piece can stand for another
    optimizer = FusedAdamW([parameter], lr=1e-3, max_norm=1.0, stochastic_rounding=dtype != torch.float32)
    with forced_isa(isa):
        optimizer.step()
    expected = float(parameter.grad.double().norm())
    # float32 is summed in float64: 2e5 additions of relative error 2^-53 at most
    assert abs(float(optimizer.grad_norm) - expected) <= 1e-9 * expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", NANS, ids=str)
@pytest.mark.parametrize("n", [1, 7, 8, 16, 31, 32, 64, 96, 128])
def test_nans_beside_what_is_smoothed_keep_their_bits(isa, dtype, n):
    memory = torch.zeros(n + 64, dtype=dtype)
    bits(memory)[:] = NANS[dtype]
    assert bool(memory.isnan().all())
    x = memory[32 : 32 + n]
    x[:-1] = 0.5  # so that a NaN of the last unit is made canonical
    run(isa, tasks_for(x, Uniform(-1.0, 1.0), shrink=0.7, perturb=0.3))
    found = bits(memory)
    assert set(found[:32].tolist()) == set(found[32 + n :].tolist()) == {NANS[dtype]}
    assert found[31 + n] == bits(torch.full((1,), torch.nan, dtype=dtype))
    assert not bool(x[:-1].isnan().any())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_scales_of_a_block_without_gradients_are_zero(isa, amsgrad):
    parameter = torch.nn.Parameter(torch.ones(512))
    parameter.grad = torch.cat((torch.zeros(256), torch.ones(256)))
    optimizer = FusedAdamW([parameter], lr=1e-3, state_dtype="int8", amsgrad=amsgrad)
    with forced_isa(isa):
        optimizer.step()
    scales = {name: value.tolist() for name, value in optimizer.state[parameter].items() if name.endswith("_scale")}
    assert len(scales) == 2 + amsgrad
    for name, (without, some) in scales.items():
        assert without == 0.0, name
        assert some > 0, name


@pytest.mark.parametrize("isa", ISAS)
def test_words_beside_the_root_of_one_half_have_the_references_logarithm(isa):
    # 0xB504F3 is the mantissa of sqrt(1/2), where the logarithm's argument goes over to the next power of two
    words = np.array([(0xB504F3 + i) << 1 for i in range(-2, 3)], dtype=np.uint32)
    angles = np.full_like(words, 12345)
    with forced_isa(isa):
        found = cpu._cpu.transform(
            table.pack(tasks_for(torch.zeros(4), Normal(0, 1))), np.stack([words, angles], axis=1).reshape(-1), isa
        )
    expected = reference.box_muller(torch.from_numpy(words.astype(np.int64)), torch.from_numpy(angles.astype(np.int64)))
    assert found.reshape(-1, 2).tobytes() == torch.stack(expected, dim=1).numpy().tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_word_between_two_equal_tails_draws_from_the_upper_half(isa):
    # float32 rounds both tail probabilities of this word to 1/2 - 2^-25, whose quantile is 2^-25 times sqrt(2 pi)
    task = table.pack(tasks_for(torch.zeros(4), TruncNormal(0, 1, -1.6354386806488037, 2.8058664798736572)))
    with forced_isa(isa):
        (found,) = cpu._cpu.transform(task, np.array([7959039 << 8], dtype=np.uint32), isa)
    assert found == pytest.approx(2.0**-25 * np.sqrt(2 * np.pi), rel=1e-6)  # roundings of a product of two float32
