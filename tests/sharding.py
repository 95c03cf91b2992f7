"""What the tests of sharded models share: a model with every kind of draw, groups of pretended ranks, layouts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import sff_fast


@contextmanager
def rank_of(rank: int, world: int) -> Iterator[None]:
    """Be one rank of a group whose other ranks do not exist: collectives return at once and move nothing."""
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache
    from torch.testing._internal.distributed.fake_pg import FakeStore

    _clear_sharding_prop_cache()  # it holds meshes, and those of another rank compare equal
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def split(tensor: torch.Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> DTensor:
    """What torch makes of a tensor that every rank has: this rank's part, in memory of its own."""
    return distribute_tensor(tensor.detach().clone(), mesh, placements, src_data_rank=None)


class Sinusoid(nn.Module):
    """A parameter of fixed values: a table in the plan."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.sin(torch.arange(length)[:, None] / 10.0 ** (torch.arange(width) / width)))


class Zoo(nn.Module):
    """Uniform, normal, truncated normal, constants, boxes, steps, a table, a recipe, a scalar and an empty parameter.

    Args:
        width: Size of most axes; odd ones shard unevenly.
    """

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, width, padding_idx=3)
        self.linear = nn.Linear(width, 2 * width)
        self.conv = nn.Conv1d(width, 5, 3)
        self.norm = nn.LayerNorm(width)
        self.position = Sinusoid(9, width)
        self.qkv = nn.Parameter(torch.empty(3 * width, width))
        with torch.no_grad():
            for part in self.qkv.chunk(3):  # three draws of one parameter
                nn.init.xavier_uniform_(part)
        self.steps = nn.Parameter(torch.zeros(width + 4, width))
        with torch.no_grad():
            self.steps[::2, 1::3].normal_()
        self.trunc = nn.Parameter(torch.empty(6, width), requires_grad=False)
        nn.init.trunc_normal_(self.trunc, std=0.02, a=-0.04, b=0.04)
        self.orthogonal = nn.Parameter(torch.empty(width, width))
        nn.init.orthogonal_(self.orthogonal)
        self.scale = nn.Parameter(torch.full((1,), 0.5))
        self.none = nn.Parameter(torch.empty(0, width))


PLANS = {width: sff_fast.trace(lambda width=width: Zoo(width)) for width in (7, 8)}


def pretrained(width: int, dtype: torch.dtype = torch.float32) -> Zoo:
    """A Zoo whose values are far from any draw."""
    zoo = Zoo(width).to(dtype)
    with torch.no_grad():
        for p in zoo.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape))
    return zoo


def shard_(model: nn.Module, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> nn.Module:
    """Replace every parameter by its part; an axis that a parameter lacks is repeated instead of sharded."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            fitting = tuple(p if not _axis_of(p) >= parameter.ndim else Replicate() for p in placements)
            module._parameters[name] = nn.Parameter(split(parameter, mesh, fitting), requires_grad=parameter.requires_grad)
    return model


def _axis_of(placement: Placement) -> int:
    return getattr(placement, "dim", -1)


R, S0, S1 = Replicate(), Shard(0), Shard(1)
MESHES = [
    ((1,), (S0,)),
    ((2,), (R,)),
    ((2,), (S0,)),
    ((2,), (S1,)),
    ((3,), (S0,)),
    ((4,), (S1,)),
    ((5,), (S0,)),
    ((16,), (S0,)),  # more ranks than rows: most hold nothing
    ((3,), (_StridedShard(0, split_factor=2),)),
    ((2,), (_StridedShard(1, split_factor=3),)),
    ((2, 2), (R, S0)),  # HSDP
    ((2, 2), (S0, R)),
    ((2, 2), (S0, S1)),
    ((2, 3), (S1, S0)),
    ((2, 2), (S0, S0)),
    ((3, 2), (S1, S1)),
    ((2, 2), (_StridedShard(0, split_factor=2), S0)),  # FSDP2 over tensor parallelism
    ((3, 2), (_StridedShard(1, split_factor=2), S1)),
    ((2, 2, 2), (R, _StridedShard(0, split_factor=2), S0)),  # HSDP over tensor parallelism
    ((2, 2, 2), (S0, S1, S0)),
]


def mesh_of(shape: tuple[int, ...]) -> DeviceMesh:
    """A mesh on the CPU over all ranks."""
    return init_device_mesh("cpu", shape, mesh_dim_names=tuple(f"d{i}" for i in range(len(shape))))
