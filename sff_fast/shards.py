"""Which elements of a parameter this process holds, and where in its memory: DTensor and what makes them.

FSDP2, tensor parallelism and their combinations leave DTensors as parameters. A rank's part of one is, along each axis of
the parameter's shape, a list of intervals that lie one after the other in the local tensor. All of it follows from mesh
coordinates and sizes: nothing is communicated, and nothing grows with the number of elements.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from typing import Any, NamedTuple

import torch
from torch import nn

from sff_fast.errors import PlanError
from sff_fast.rectangles import Rectangle

Intervals = list[tuple[int, int]]
"""Half-open, ascending, none empty."""


class Piece(NamedTuple):
    """Memory of this process and the part of a parameter that it holds.

    Args:
        tensor: A plain strided tensor.
        region: One half-open interval an axis of the parameter's shape, ``tensor``'s sizes; None for the whole parameter.
    """

    tensor: torch.Tensor
    region: Rectangle | None


def local(parameter: torch.Tensor) -> torch.Tensor:
    """The memory of a parameter that lies in this process; a plain parameter itself."""
    if not is_sharded(parameter):
        return parameter
    with torch.no_grad():
        return parameter.to_local()


def pieces(name: str, parameter: torch.Tensor) -> list[Piece]:
    """What this process holds of a parameter.

    Args:
        name: The parameter's name, for messages.
        parameter: A plain parameter, or a DTensor on any mesh.

    Returns:
        Disjoint pieces that cover this rank's memory; none where the rank holds nothing.

    Raises:
        PlanError: A placement has no elements that could be addressed (Partial), or is unknown.
    """
    if not is_sharded(parameter):
        return [Piece(parameter, None)]
    memory = local(parameter)
    coordinate = parameter.device_mesh.get_coordinate()
    if coordinate is None:  # this rank is no part of the mesh
        return []
    axes = _axes(name, parameter, tuple(coordinate), tuple(memory.shape))
    return list(_cut(memory, tuple(parameter.shape), axes))


def reshard(model: nn.Module) -> None:
    """Put the sharded parameters of FSDP2 back where a forward pass has left gathered ones, which are thrown away later.

    It frees memory and communicates nothing.

    Raises:
        PlanError: It was a module around the model that gathered them.
    """
    if _fsdp_class() is None:
        return
    for module in model.modules():
        if isinstance(module, _fsdp_class()):
            module.reshard()
    for name, module in model.named_modules():
        if _is_gathered(module):
            raise PlanError(
                f"the parameters of {name or 'the model'!r} are copies that fully_shard of a module around it has gathered: "
                f"pass that module with prefix=, or call its reshard() first"
            )


def _is_gathered(module: nn.Module) -> bool:
    # FSDP2 leaves no other trace on a module of its own than a hook, which holds its record of the parameter.
    for hook in module._load_state_dict_post_hooks.values():
        for cell in getattr(hook, "__closure__", None) or ():
            state = getattr(cell.cell_contents, "sharded_state", None)
            if state is not None and getattr(state, "name", "") == "UNSHARDED":
                return True
    return False


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has changed the class of the model or of a part of it."""
    cls = _fsdp_class()
    return cls is not None and any(isinstance(module, cls) for module in model.modules())


def plain_type(model: nn.Module) -> type:
    """The model's own class, which FSDP2 puts one of its own in front of."""
    cls = _fsdp_class()
    return type(model).__mro__[2] if cls is not None and isinstance(model, cls) else type(model)


def _fsdp_class() -> type | None:
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)


def is_sharded(parameter: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    # Whoever has made a DTensor has imported its module; nobody else shall pay for it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(parameter, module.DTensor)


# ---------------------------------------------------------------------- placements
class Split(NamedTuple):
    """One mesh dimension that divides an axis of the shape.

    Args:
        axis: The axis.
        parts: Size of the mesh dimension.
        factor: 1, or how many parts each is divided within (``_StridedShard``), default 1.
    """

    axis: int
    parts: int
    factor: int = 1


def _splits(name: str, parameter: Any) -> list[Split | None]:
    """How each mesh dimension divides the parameter; None where it repeats it."""
    placed = sys.modules["torch.distributed.tensor.placement_types"]
    order = getattr(parameter._spec, "shard_order", None)
    if order is not None and any(tuple(entry.mesh_dims) != tuple(sorted(entry.mesh_dims)) for entry in order):
        raise PlanError(
            f"{name!r} is sharded over mesh dimensions in the order {order}: expected first to last; redistribute it first"
        )
    found: list[Split | None] = []
    for k, (placement, parts) in enumerate(zip(parameter.placements, parameter.device_mesh.shape)):
        if type(placement) is placed._StridedShard:
            found.append(Split(placement.dim, parts, int(placement.split_factor)))
        elif type(placement) is placed.Shard:
            found.append(Split(placement.dim, parts))
        elif type(placement) is placed.Replicate:
            found.append(None)
        elif isinstance(placement, placed.Partial):
            raise PlanError(
                f"{name!r} is a partial sum over mesh dimension {k} ({placement}), no rank has its values: redistribute it to "
                f"Shard or Replicate first"
            )
        else:
            raise PlanError(f"{name!r} has the placement {placement!r}: expected Shard or Replicate; redistribute it first")
    return found


def _chunk(count: int, parts: int, k: int) -> tuple[int, int]:
    """Part k of ``count`` elements as ``torch.chunk`` cuts them: the last ones are short or empty."""
    each = -(-count // parts)
    return min(count, each * k), min(count, each * (k + 1))


def _take(intervals: Intervals, begin: int, end: int) -> Intervals:
    """Elements [begin, end) of the intervals' elements, counted one after the other."""
    taken, at = [], 0
    for low, high in intervals:
        first, last = max(begin - at, 0), min(end - at, high - low)
        if first < last:
            taken.append((low + first, low + last))
        at += high - low
    return taken


def _count(intervals: Intervals) -> int:
    return sum(high - low for low, high in intervals)


def divide(intervals: Intervals, split: Split, k: int) -> Intervals:
    """Part k of an axis.

    Args:
        intervals: What is divided.
        split: By what. With a factor, each of ``factor`` chunks is divided, and the part takes its share of every one.
        k: Coordinate in the mesh dimension.

    Returns:
        The part, in the order in which it lies in memory.
    """
    total, taken = _count(intervals), []
    for j in range(split.factor):
        begin, end = _chunk(total, split.factor, j)
        first, last = _chunk(end - begin, split.parts, k)
        taken += _take(intervals, begin + first, begin + last)
    return _joined(taken)


def _joined(intervals: Intervals) -> Intervals:
    joined: Intervals = []
    for low, high in intervals:
        if joined and joined[-1][1] == low:
            joined[-1] = (joined[-1][0], high)
        else:
            joined.append((low, high))
    return joined


def by_placements(shape: Sequence[int], splits: Sequence[Split | None], coordinate: Sequence[int]) -> list[Intervals]:
    """The intervals of each axis: mesh dimensions first to last, as ``distribute_tensor`` shards."""
    axes: list[Intervals] = [[(0, n)] if n else [] for n in shape]
    for split, k in zip(splits, coordinate):
        if split is not None:
            axes[split.axis] = divide(axes[split.axis], split, k)
    return axes


def by_wrapping(shape: Sequence[int], splits: Sequence[Split | None], coordinate: Sequence[int]) -> list[Intervals]:
    """The intervals of each axis: strided mesh dimensions last, as ``fully_shard`` cuts what tensor parallelism left.

    Equal to :func:`by_placements` for even sizes; for some uneven ones, such as 7 elements on a 3 x 2 mesh, it is not.
    """
    later = [split is not None and split.factor > 1 for split in splits]
    axes: list[Intervals] = [[(0, n)] if n else [] for n in shape]
    for strided in (False, True):
        for split, k, last in zip(splits, coordinate, later):
            if split is not None and last == strided:
                axes[split.axis] = divide(axes[split.axis], split._replace(factor=1), k)
    return axes


def _axes(name: str, parameter: Any, coordinate: tuple[int, ...], memory: tuple[int, ...]) -> list[Intervals]:
    """The intervals of each axis that this rank holds, checked against the sizes of its memory."""
    shape, mesh = tuple(parameter.shape), tuple(parameter.device_mesh.shape)
    splits = _splits(name, parameter)
    axes = by_placements(shape, splits, coordinate)
    if _wraps(splits):
        _refuse_ambiguous(name, shape, splits, mesh)
        if _sizes(axes) != memory:
            axes = by_wrapping(shape, splits, coordinate)
    if _sizes(axes) != memory and not (0 in memory and 0 in _sizes(axes)):
        raise PlanError(
            f"{name!r} of shape {shape} has {memory} on this rank, expected {_sizes(axes)} from its placements "
            f"{tuple(parameter.placements)} on a mesh of {mesh}"
        )
    return axes


def _wraps(splits: Sequence[Split | None]) -> bool:
    """Whether the strided mesh dimensions count the parts of the others, as they do where FSDP2 wraps sharded parameters."""
    given = [split for split in splits if split is not None]
    strided = [split for split in given if split.factor > 1]
    return bool(strided) and all(
        split.factor == math.prod(other.parts for other in given if other.axis == split.axis and other.factor == 1)
        for split in strided
    )


def _refuse_ambiguous(name: str, shape: tuple[int, ...], splits: Sequence[Split | None], mesh: tuple[int, ...]) -> None:
    """Refuse sizes for which the memory's shape does not tell the two orders apart, on all ranks alike."""
    uneven = [split for split in splits if split is not None and shape[split.axis] % _parts(splits, split.axis)]
    for coordinate in product(*map(range, mesh)) if uneven else ():
        first, second = by_placements(shape, splits, coordinate), by_wrapping(shape, splits, coordinate)
        if first != second and _sizes(first) == _sizes(second) and 0 not in _sizes(first):
            raise PlanError(
                f"{name!r} of shape {shape} is sharded unevenly over a mesh of {mesh} in two dimensions, and its shards do not "
                f"tell in which order: use a mesh that divides the shape, or smooth before sharding"
            )


def _parts(splits: Sequence[Split | None], axis: int) -> int:
    return math.prod(split.parts for split in splits if split is not None and split.axis == axis)


def _sizes(axes: Sequence[Intervals]) -> tuple[int, ...]:
    return tuple(_count(intervals) for intervals in axes)


def _cut(memory: torch.Tensor, shape: tuple[int, ...], axes: Sequence[Intervals]) -> Iterator[Piece]:
    """The local tensor cut where its elements are not neighbours in the parameter."""
    starts = [[0, *accumulate(high - low for low, high in intervals)] for intervals in axes]
    for choice in product(*(range(len(intervals)) for intervals in axes)):
        view, region = memory, tuple(axes[axis][i] for axis, i in enumerate(choice))
        for axis, i in enumerate(choice):
            low, high = region[axis]
            if len(axes[axis]) > 1:
                view = view.narrow(axis, starts[axis][i], high - low)
        yield Piece(view, None if region == tuple((0, n) for n in shape) else region)
