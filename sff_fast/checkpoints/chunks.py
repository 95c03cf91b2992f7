"""A file of weights cut into pieces of bounded size, each smoothed on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from sff_fast import table
from sff_fast.checkpoints.header import FLOATS, Entry, Header
from sff_fast.checkpoints.window import restricted, whole_shape
from sff_fast.plan import InitPlan, ParameterPlan

CHUNK = 8 << 20
"""Bytes of a piece. What is read, smoothed and written at a time stays in the cache; larger ones were not faster."""


@dataclass(frozen=True)
class Chunk:
    """Bytes of a file that are taken together.

    Args:
        begin: First byte, from the start of the file.
        end: One past the last.
        parts: (tensor, first byte, one past the last) of what lies in it, from the start of the file.
    """

    begin: int
    end: int
    parts: tuple[tuple[Entry, int, int], ...]


@dataclass(frozen=True)
class Recipe:
    """What is to become of a parameter.

    Args:
        parameter: How it is drawn.
        shrink: Factor of what is in the file.
        perturb: Factor of the draw.
    """

    parameter: ParameterPlan
    shrink: float
    perturb: float


def cut(header: Header, size: int = CHUNK, start: int = 0) -> Iterator[Chunk]:
    """Cut the data of a file at multiples of elements.

    Args:
        header: The file.
        size: Bytes of a piece at most.
        start: Leave out the bytes before this one, from the start of the file; where a piece ended.

    Yields:
        The pieces in order. A tensor whose elements would not be aligned behind the ones before it begins a new piece.
    """
    begin, parts = max(header.data, start), []
    at = begin
    for entry in header.entries:
        width = FLOATS[entry.dtype].itemsize if entry.dtype in FLOATS else 1
        while at < entry.end:
            if at == begin + size or (parts and (at - begin) % width):
                yield Chunk(begin, at, tuple(parts))
                begin, parts = at, []
            room = (begin + size - at) // width * width
            if room == 0:  # Less than an element is left.
                yield Chunk(begin, at, tuple(parts))
                begin, parts = at, []
                room = size // width * width
            end = min(entry.end, at + room)
            parts.append((entry, at, end))
            at = end
    if parts:
        yield Chunk(begin, at, tuple(parts))


class Smoother:
    """Smooths pieces of a checkpoint in memory, in the order of the file.

    Args:
        recipes: Name of a tensor to what becomes of it; other tensors stay as they are.
        plan: The plan that the recipes come from.
        seed: Seed of the random stream.
        rounding: ``"nearest"`` or ``"stochastic"``.
        run: The backend's ``run(tasks, threads)``.
        threads: At most this many, or None.
    """

    def __init__(
        self,
        recipes: Mapping[str, Recipe],
        plan: InitPlan,
        seed: int,
        rounding: str,
        run: Callable[[list[table.BoxTask], int | None], int],
        threads: int | None,
    ) -> None:
        self._recipes, self._plan, self._seed, self._rounding = recipes, plan, seed, rounding
        self._run, self._threads = run, threads
        self._current: tuple[str, list[table.BoxTask]] = ("", [])
        self.used = 1

    def __call__(self, chunk: Chunk, memory: torch.Tensor) -> None:
        """Smooth one piece.

        Args:
            chunk: What it is.
            memory: uint8 [chunk.end - chunk.begin] its bytes, aligned to 8; smoothed in place.
        """
        tasks: list[table.BoxTask] = []
        for entry, begin, end in chunk.parts:
            recipe = self._recipes.get(entry.name)
            if recipe is None or begin == end:
                continue
            dtype = FLOATS[entry.dtype]
            tensor = memory[begin - chunk.begin : end - chunk.begin].view(dtype)
            low = (begin - entry.begin) // dtype.itemsize
            tasks += restricted(self._table(entry, recipe), tensor, low, low + tensor.numel())
        if tasks:
            self.used = max(self.used, self._run(tasks, self._threads))

    def _table(self, entry: Entry, recipe: Recipe) -> list[table.BoxTask]:
        """The whole parameter's table; kept for the next piece, which may go on with the same tensor."""
        if self._current[0] != entry.name:
            shape = whole_shape(recipe.parameter.shape, FLOATS[entry.dtype])
            built = table.build(
                [(recipe.parameter, shape, recipe.shrink, recipe.perturb)], self._plan, self._seed, self._rounding
            )
            self._current = (entry.name, built)
        return self._current[1]
