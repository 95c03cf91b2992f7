"""One recorded draw, repeated by torch itself on a generator of its own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch

from sff_fast.replay.program import DrawRecord

Filler = Callable[[torch.Tensor, tuple[float, ...], torch.Generator], None]


def _uniform(out: torch.Tensor, numbers: tuple[float, ...], generator: torch.Generator) -> None:
    out.uniform_(*numbers, generator=generator)


def _normal(out: torch.Tensor, numbers: tuple[float, ...], generator: torch.Generator) -> None:
    out.normal_(*numbers, generator=generator)


def _normal_then_scaled(out: torch.Tensor, numbers: tuple[float, ...], generator: torch.Generator) -> None:
    """``torch.normal`` with a tensor among its arguments: drawn as standard normal, then multiplied and shifted."""
    mean, std = numbers
    out.normal_(0, 1, generator=generator).mul_(std).add_(mean)


def _normal_then_shifted(out: torch.Tensor, numbers: tuple[float, ...], generator: torch.Generator) -> None:
    """``torch.normal`` with a tensor of means and a number as standard deviation."""
    mean, std = numbers
    out.normal_(0, std, generator=generator).add_(mean)


def _trunc_normal(out: torch.Tensor, numbers: tuple[float, ...], generator: torch.Generator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the constructor's own call has warned already
        torch.nn.init.trunc_normal_(out, *numbers, generator=generator)


def _orthogonal(out: torch.Tensor, numbers: tuple[float, ...], generator: torch.Generator) -> None:
    torch.nn.init.orthogonal_(out, *numbers, generator=generator)


def _sparse(out: torch.Tensor, numbers: tuple[float, ...], generator: torch.Generator) -> None:
    """As ``torch.nn.init.sparse_``, which takes its permutations from the global generator whatever it is given."""
    sparsity, std = numbers
    rows, columns = out.shape
    zeros = math.ceil(sparsity * rows)
    out.normal_(0, std, generator=generator)
    for column in range(columns):
        out[torch.randperm(rows, generator=generator)[:zeros], column] = 0


FILLERS: dict[str, Filler] = {
    "uniform_": _uniform,
    "normal_": _normal,
    "rand": _uniform,
    "rand_like": _uniform,
    "randn": _normal,
    "randn_like": _normal,
    "normal": _normal,
    "normal.Tensor_float": _normal_then_shifted,
    "normal.float_Tensor": _normal_then_scaled,
    "normal.Tensor_Tensor": _normal_then_scaled,
    "trunc_normal_": _trunc_normal,
    "orthogonal_": _orthogonal,
    "sparse_": _sparse,
}
"""What each recorded operation does to a tensor of the recorded geometry."""


def scratch_bytes(record: DrawRecord) -> int:
    """Bytes of memory that a draw needs."""
    if 0 in record.shape:
        return 0
    return (1 + sum((n - 1) * stride for n, stride in zip(record.shape, record.strides))) * record.dtype.itemsize


def generate(record: DrawRecord, generator: torch.Generator, scratch: torch.Tensor) -> torch.Tensor:
    """Repeat a draw.

    Args:
        record: A draw that can be replayed.
        generator: A CPU generator in the state that it had before the draw; it is advanced as the constructor advanced it.
        scratch: uint8 tensor of at least :func:`scratch_bytes` bytes, aligned as torch aligns its memory.

    Returns:
        The draw in the scratch memory, with the recorded strides.
    """
    count = scratch_bytes(record)
    out = torch.as_strided(scratch[:count].view(record.dtype), record.shape, record.strides)
    with torch.no_grad():
        FILLERS[record.op](out, record.arguments, generator)
    return out
