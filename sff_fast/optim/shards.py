"""Parameters that are spread over processes (DTensor, as FSDP2 makes them): the part that this process holds.

An optimizer steps its own shard; the states, the blocks of int8 states and the random bits of stochastic rounding go by
the elements of that shard. Only the norm of the gradients needs the other processes.
"""

from __future__ import annotations

from typing import Any

import torch

from sff_fast.shards import is_sharded, local

__all__ = ["Layout", "has_pending_sum", "is_sharded", "label_of", "layout_of", "like", "local", "sum_over_shards"]

Layout = tuple[Any, tuple[Any, ...]] | None
"""The device mesh and placements of a DTensor; None of an ordinary tensor."""


def layout_of(tensor: torch.Tensor) -> Layout:
    """How a tensor is spread over processes."""
    return (tensor.device_mesh, tuple(tensor.placements)) if is_sharded(tensor) else None


def has_pending_sum(tensor: torch.Tensor) -> bool:
    """Whether a DTensor's value is a sum over processes that has not been taken yet."""
    return is_sharded(tensor) and any(placement.is_partial() for placement in tensor.placements)


def label_of(label: str, tensor: torch.Tensor) -> str:
    """The name that addresses a parameter's random bits: shards of one parameter have different ones."""
    if not is_sharded(tensor) or not any(placement.is_shard() for placement in tensor.placements):
        return label
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return f"{label}[{','.join(map(str, offset))}]"


def sum_over_shards(layout: Layout, value: float) -> float:
    """The sum of what each process has of a quantity: over the processes that hold different parts, each part once."""
    if layout is None:
        return value
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = layout
    spread = [Partial() if placement.is_shard() else Replicate() for placement in placements]
    part = torch.tensor(value, dtype=torch.float64, device=mesh.device_type)
    return float(DTensor.from_local(part, mesh, spread, run_check=False).full_tensor())


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A tensor of the shape of this process's part, as a DTensor that is spread as the parameter is."""
    if not is_sharded(parameter) or value.dim() != parameter.dim():
        return value
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
