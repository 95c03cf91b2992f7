"""The constructor's ordered draw program, and concrete values of its draws when something has to read them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from sff_fast.distributions import Materialized
from sff_fast.recipes import draw_recipe
from sff_fast.tracing.values import Law

CACHE_BYTES = 16 << 20


@dataclass(frozen=True)
class Draw:
    """One operation that consumed random numbers.

    Args:
        index: Position in the program.
        op: Name of the operation.
        shape: Shape of the tensor it drew.
        strides: Its strides.
        dtype: Its dtype.
        arguments: The operation's numbers.
        law: Distribution of an element, or None where it was executed for real.
        generator: ``"default"`` or ``"own"``.
        after: Number of the draw after which the constructor had put torch's generator back, -1 for the beginning, or None
            where the generator went on from the draw before.
    """

    index: int
    op: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    arguments: tuple[Any, ...]
    law: Law | None
    generator: str = "default"
    after: int | None = None


SAME = {"rand": "uniform_", "rand_like": "uniform_", "randn": "normal_", "randn_like": "normal_"}
"""Operations that torch does as others."""

WHOLE = ("orthogonal_", "sparse_")
"""Operations whose elements are not drawn one after the other."""

UNSEEN = "unseen"
"""Name of a draw that was noticed by the generator's state alone."""


def derived_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed that depends on a seed and a purpose."""
    text = "/".join(map(str, purpose)).encode()
    key = hashlib.blake2b(text, digest_size=8, key=(seed % 2**64).to_bytes(8, "little")).digest()
    return int.from_bytes(key, "little") % 2**63


class DrawProgram:
    """The draws of one run of a constructor.

    Args:
        seed: Seed of concrete values.
        source: Gives the concrete values of a draw, or None where it has none for it.
    """

    def __init__(self, seed: int, source: Callable[[Draw, Callable[[], torch.Tensor]], torch.Tensor | None] | None) -> None:
        self.seed = seed
        self.source = source
        self.draws: list[Draw] = []
        self.recorded = -1
        """Number of the last draw from torch's generator in the program, which a replay comes from."""
        self._following: dict[tuple, int] = {}
        self._cache: OrderedDict[int, torch.Tensor] = OrderedDict()

    def record(
        self, op: str, like: torch.Tensor, arguments: tuple[Any, ...], law: Law | None, generator: str = "default"
    ) -> Draw:
        """Append a draw with the geometry of ``like``."""
        draw = Draw(len(self.draws), op, tuple(like.shape), tuple(like.stride()), like.dtype, arguments, law, generator)
        self.draws.append(draw)
        return draw

    def record_at(self, place: int, op: str, like: torch.Tensor, arguments: tuple[Any, ...], law: Law | None) -> Draw:
        """Append a draw from torch's generator, or find the same one where the generator was put back to what it was then.

        Args:
            place: Number of the draw that the generator's state comes after, -1 for the beginning.
            op: Name of the operation.
            like: Tensor of the draw's geometry.
            arguments: The operation's numbers.
            law: Distribution of an element, or None where it is executed for real: such a draw is always a new one.

        Returns:
            The draw. Where it is new, it is the last one, and :meth:`forget` takes it back.
        """
        # Elements of contiguous memory are drawn in order, whatever its shape; a matrix that is drawn as a whole is not.
        flat = like.is_contiguous() and op not in WHOLE
        geometry = (like.numel(),) if flat else (tuple(like.shape), tuple(like.stride()))
        call = (place, SAME.get(op, op), geometry, like.dtype, law)
        known = self._following.get(call) if law is not None else None
        if known is not None:
            return self.draws[known]
        draw = self.record(op, like, arguments, law)
        if place != self.recorded:
            draw = self.draws[-1] = replace(draw, after=place)
        if law is not None:
            self._following[call] = draw.index
        self.recorded = draw.index
        return draw

    def forget(self, count: int, recorded: int) -> None:
        """Take back the draws from number ``count`` on; ``recorded`` is what the attribute of this name was then."""
        del self.draws[count:]
        self._following = {call: index for call, index in self._following.items() if index < count}
        self.recorded = recorded

    def values(self, index: int) -> torch.Tensor:
        """The concrete values of a recorded draw, flat in row-major order; the same at every call."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        draw = self.draws[index]
        values = self.source(draw, lambda: self._generate(draw)) if self.source else None
        if values is None:
            values = self._generate(draw)
        values = values.reshape(-1)
        self._cache[index] = values
        while len(self._cache) > 1 and sum(v.numel() * v.element_size() for v in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return values

    def _generate(self, draw: Draw) -> torch.Tensor:
        if draw.law.kind in ("orthogonal", "sparse"):
            recipe = draw.law.distribution(draw.shape)
            assert isinstance(recipe, Materialized)
            return draw_recipe(recipe, f"draw {draw.index}", self.seed).to(draw.dtype)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "draw", draw.index))
        values = torch.empty(draw.shape, dtype=draw.dtype)
        if draw.law.kind == "uniform":
            return values.uniform_(*draw.law.numbers, generator=generator)
        if draw.law.kind == "normal":
            return values.normal_(*draw.law.numbers, generator=generator)
        return torch.nn.init.trunc_normal_(values, *draw.law.numbers, generator=generator)
