"""What mutation testing (tools/mutate_kernels.py) found that no other test noticed."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import ISAS, bits, forced_isa, run, tasks_for

from sff_fast import FusedAdamW
from sff_fast.distributions import Constant


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
