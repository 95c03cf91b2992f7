"""Two random directions in the space of the weights, drawn anew by the kernel whenever they are needed.

Element i of direction k of a parameter is a standard normal number of the random stream (seed, ``direction0`` or
``direction1``, the parameter's name, i), times its filter's factor: the norm of the weights' filter over the norm of the
direction's. Neither direction is ever stored: a block of rows is drawn, scaled, added and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from sff_fast import backends, shards
from sff_fast.distributions import Normal
from sff_fast.errors import ArgumentError
from sff_fast.inspect_parameters import check_parameters
from sff_fast.landscapes.filters import Filters, filters_of, norms
from sff_fast.stream import DIRECTION0, DIRECTION1, check_seed, stream_id
from sff_fast.table import BoxTask, parameters_of

PURPOSES = (DIRECTION0, DIRECTION1)
BLOCK = 1 << 20
"""Elements that are drawn at a time, at least one row."""

_CODE, _P = parameters_of(Normal(0.0, 1.0))


@dataclass(frozen=True)
class _Moved:
    """A parameter that moves: its own memory, the host copy of its weights, and one factor a filter for each direction."""

    name: str
    parameter: torch.Tensor
    filters: Filters
    kept: torch.Tensor
    factors: tuple[torch.Tensor, torch.Tensor]


class Plane:
    """The plane through a model's weights along the two directions; the model is moved in it, in place.

    A context: when the block ends, however it ends, the weights are those that it began with, bit for bit. Until then one
    copy of the moved weights is kept on the host, and at most :data:`BLOCK` elements (or one row) of a direction.

    Args:
        model: The model; its parameters are moved where they are, buffers are left alone.
        seed: Seed of the directions.

    Raises:
        ArgumentError: No parameter has filters, or the weights are sharded.
        PlanError: A parameter cannot be written in place.
    """

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        self._seed = check_seed(seed)
        self._found = filters_of(model)
        if not self._found:
            raise ArgumentError("the model has no parameter with two axes or more: there is no filter to move it along")
        for name, (parameter, _) in self._found.items():
            if shards.local(parameter) is not parameter:
                raise ArgumentError(f"{name!r} is sharded: a landscape needs all of the weights in one place, without FSDP2")
        check_parameters({name: parameter for name, (parameter, _) in self._found.items()})
        self._moved: list[_Moved] = []

    @property
    def elements(self) -> int:
        """Elements that move."""
        return sum(filters.numel for _, filters in self._found.values())

    def __enter__(self) -> Plane:
        with torch.no_grad():
            for name, (parameter, filters) in self._found.items():
                tensor = parameter.detach()
                kept = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                kept.copy_(tensor)
                self._moved.append(_Moved(name, tensor, filters, kept, self._factors(name, tensor, filters)))
        return self

    def __exit__(self, *_: object) -> None:
        restored = False
        try:
            self._restore()
            restored = True
        finally:
            if not restored:  # ctrl-C in the middle of it: once more, from the beginning
                self._restore()
            self._moved.clear()

    def _restore(self) -> None:
        with torch.no_grad():
            for moved in self._moved:
                moved.parameter.copy_(moved.kept)

    def move(self, a: float, b: float) -> None:
        """Put the model at ``weights + a * direction 0 + b * direction 1``.

        The sum is taken in float32 (float64 for float64 weights) and rounded once; what does not move (a and b 0) has the
        weights' own bits.

        Args:
            a: Coordinate along direction 0, in units of the filters' norms.
            b: Coordinate along direction 1.
        """
        with torch.no_grad():
            for moved in self._moved:
                if a == 0 and b == 0:
                    moved.parameter.copy_(moved.kept)
                    continue
                kept = moved.kept.view(moved.filters.rows, moved.filters.width)
                for first, last, target in _blocks(moved.parameter, moved.filters):
                    wide = torch.promote_types(kept.dtype, torch.float32)
                    total = kept[first:last].to(target.device, wide, copy=True)
                    for purpose, coordinate, factor in zip(PURPOSES, (a, b), moved.factors, strict=True):
                        if coordinate != 0:
                            total += self._scaled(moved, purpose, first, last, coordinate * factor)
                    target.copy_(total.view(target.shape))

    def direction(self, number: int, name: str) -> torch.Tensor:
        """One parameter's part of a direction, filter-normalised.

        Args:
            number: 0 or 1.
            name: The plan's name of a parameter that moves.

        Returns:
            float32 of the parameter's shape, on its device.
        """
        moved = next(moved for moved in self._moved if moved.name == name)
        scaled = self._scaled(moved, PURPOSES[number], 0, moved.filters.rows, moved.factors[number])
        return scaled.view(moved.parameter.shape)

    def _scaled(self, moved: _Moved, purpose: bytes, first: int, last: int, factors: torch.Tensor) -> torch.Tensor:
        rows = self._draw(moved.name, purpose, first, last, moved.filters.width, moved.parameter.device)
        numbers = torch.arange(first, last, device=rows.device) % moved.filters.count
        return rows.mul_(factors[numbers].to(rows.dtype)[:, None])

    def _draw(self, name: str, purpose: bytes, first: int, last: int, width: int, device: torch.device) -> torch.Tensor:
        """Rows of a parameter's standard normal numbers, float32."""
        rows = torch.empty(last - first, width, dtype=torch.float32, device=device)
        one, offset = (1,), first * width
        stream = stream_id(name, purpose)
        task = BoxTask(
            rows.view(-1), _CODE, _P, (rows.numel(),), one, one, one, 0, offset, offset, self._seed, stream, 0, 0, 0.0, 1.0, False
        )
        _, run = backends.choose("auto", device)
        run([task], None)
        return rows

    def _factors(self, name: str, tensor: torch.Tensor, filters: Filters) -> tuple[torch.Tensor, torch.Tensor]:
        """For each direction and filter: the norm of the weights over the norm of the draw, float64; 0 where a norm is 0."""
        of_weights, *of_draws = (torch.zeros(filters.count, dtype=torch.float64, device=tensor.device) for _ in range(3))
        for first, last, rows in _blocks(tensor, filters):
            norms(rows.reshape(last - first, filters.width), first, of_weights)
            for purpose, sums in zip(PURPOSES, of_draws, strict=True):
                norms(self._draw(name, purpose, first, last, filters.width, tensor.device), first, sums)
        first, second = ((of_weights / sums).sqrt().nan_to_num(0.0, posinf=0.0) for sums in of_draws)
        return first, second


def _blocks(tensor: torch.Tensor, filters: Filters) -> Iterator[tuple[int, int, torch.Tensor]]:
    """First row, the one after the last, and the memory of every block; all of a tensor at once that is not contiguous."""
    if not tensor.is_contiguous():
        yield 0, filters.rows, tensor
        return
    step = max(1, BLOCK // filters.width)
    rows = tensor.view(filters.rows, filters.width)
    for first in range(0, filters.rows, step):
        last = min(first + step, filters.rows)
        yield first, last, rows[first:last]
