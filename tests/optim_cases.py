"""What the tests of the optimizers share: parameters, gradients, and the plain-torch step in place of the compiled one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import kernel_cases
import pytest
import torch

from sff_fast.optim.buckets import Bucket

SIZES = ((1,), (7,), (3, 11), (255,), (257,), (0,), (16, 64), (2, 3, 5, 7), (4099,))
"""Nothing, less than a vector, tails, whole blocks, and more than one."""


def parameters(dtype: torch.dtype = torch.float32, sizes: Sequence[tuple[int, ...]] = SIZES) -> list[torch.nn.Parameter]:
    """Parameters around 1, so that relative errors mean something."""
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter((torch.randn(size, generator=generator) + 1.5).to(dtype)) for size in sizes]


def give_gradients(params: Sequence[torch.nn.Parameter], step: int, skip: Sequence[int] = ()) -> None:
    """The same gradients for the same step; every parameter's have another magnitude. ``skip`` get None."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        values = torch.randn(p.shape, generator=generator) * 10.0 ** (i % 5 - 3)
        p.grad = None if i in skip else values.to(p.dtype)


def train(
    optimizer: torch.optim.Optimizer, params: Sequence[torch.nn.Parameter], steps: int, first: int = 0, skip: Sequence[int] = ()
) -> None:
    """Some steps with :func:`give_gradients`."""
    for step in range(first, first + steps):
        give_gradients(params, step, skip)
        optimizer.step()


def everything(optimizer: torch.optim.Optimizer, params: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Copies of all parameters and states."""
    states = [value for p in params for _, value in sorted(optimizer.state.get(p, {}).items())]
    return [x.detach().clone() for x in (*params, *states)]


def assert_equal_bits(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> None:
    """Bit by bit, NaN and signed zeros too."""
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.dtype == y.dtype
        assert torch.equal(
            kernel_cases.bits(x) if x.is_floating_point() else x, kernel_cases.bits(y) if y.is_floating_point() else y
        )


@contextmanager
def backend(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The step on ``"reference"`` or on the compiled kernels of an instruction set."""
    if name == "reference":
        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "native", False)
            yield
    else:
        with kernel_cases.forced_isa(name):
            yield
