"""What a constructor has put into memory: constants, elementwise functions of random draws, or concrete data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from sff_fast.distributions import (
    FLOAT32_MAX,
    Constant,
    Distribution,
    Materialized,
    Normal,
    TruncNormal,
    Uniform,
)

FAR = 38.0
"""A normal variable lies further than this many standard deviations from its mean with probability 0 in float64."""


@dataclass(frozen=True)
class Law:
    """Distribution of one element while the constructor runs; bounds may be infinite.

    Args:
        kind: ``uniform`` (low, high), ``normal`` (mean, std), ``trunc_normal`` (mean, std, a, b), ``orthogonal`` (gain,) or
            ``sparse`` (sparsity, std, gain).
        numbers: The numbers of that kind.
    """

    kind: str
    numbers: tuple[float, ...]

    def affine(self, scale: float, shift: float) -> Law | None:
        """The law of ``scale * x + shift`` for a nonzero scale, or None where this module has no name for it."""
        if not (math.isfinite(scale) and math.isfinite(shift)) or scale == 0:
            return None
        p = self.numbers
        if self.kind == "uniform":
            return Law("uniform", tuple(sorted((p[0] * scale + shift, p[1] * scale + shift))))
        if self.kind == "normal":
            return Law("normal", (p[0] * scale + shift, p[1] * abs(scale)))
        if self.kind == "trunc_normal":
            low, high = sorted((p[2] * scale + shift, p[3] * scale + shift))
            return Law("trunc_normal", (p[0] * scale + shift, p[1] * abs(scale), low, high))
        if shift == 0:
            return Law(self.kind, (*p[:-1], p[-1] * scale))
        return None

    def erfinv(self) -> Law | None:
        """The law of the inverse error function of a uniform variable: a normal of std sqrt(1/2), truncated."""
        if self.kind != "uniform":
            return None
        low, high = self.numbers
        if not -1 <= low < high <= 1:
            return None
        a, b = (float(torch.erfinv(torch.tensor(x, dtype=torch.float64))) for x in (low, high))
        return Law("trunc_normal", (0.0, math.sqrt(0.5), a, b))

    def clamp(self, low: float, high: float) -> Law | None:
        """The law after clamping, where the bounds cut nothing off but what float32 rounding put there."""
        if self.kind == "uniform":
            a, b = self.numbers
            scale = b - a
        elif self.kind == "trunc_normal":
            a, b = self.numbers[2:]
            scale = self.numbers[1]
        else:
            return None
        slack = 1e-5 * scale
        if low > self._reached(a) + slack or high < self._reached(b) - slack:
            return None
        a, b = max(a, low), min(b, high)
        return replace(self, numbers=(a, b) if self.kind == "uniform" else (*self.numbers[:2], a, b))

    def _reached(self, bound: float) -> float:
        """A bound as far as float32 draws get: the inverse error function of 1 - 2**-24 is 5.3 standard deviations."""
        if self.kind != "trunc_normal":
            return bound
        mean, std = self.numbers[:2]
        return min(max(bound, mean - 5.2 * std), mean + 5.2 * std)

    def distribution(self, shape: tuple[int, ...]) -> Distribution:
        """The plan's distribution.

        Args:
            shape: Shape of the draw, for recipes.

        Returns:
            The distribution.

        Raises:
            PlanError: Stream version 1 has no such distribution.
        """
        p = self.numbers
        if self.kind == "uniform":
            return Uniform(*p)
        if self.kind == "normal":
            return Normal(*p)
        if self.kind == "trunc_normal":
            mean, std, a, b = p
            if math.isinf(a) and math.isinf(b):
                return Normal(mean, std)
            a = min(mean - FAR * std, b - FAR * std) if math.isinf(a) else a
            b = max(mean + FAR * std, a + FAR * std) if math.isinf(b) else b
            return TruncNormal(mean, std, a, b)
        if self.kind == "orthogonal":
            return Materialized("recipe", "orthogonal matrix", recipe="orthogonal", gain=p[0], shape=shape)
        return Materialized("recipe", "sparse columns", recipe="sparse", sparsity=p[0], std=p[1], gain=p[2], shape=shape)


Operation = tuple[Any, ...]
"""An operation after a draw: its name, then its numbers or its dtype."""


def apply(values: torch.Tensor, operation: Operation) -> torch.Tensor:
    """Do to values what the constructor did.

    Args:
        values: Any tensor.
        operation: A name out of mul, div, add, sub, rsub, radd, neg, erfinv, clamp, to, and its arguments; the sums may have
            torch's ``alpha`` after the number (radd is ``number + alpha * values``).

    Returns:
        The new values.
    """
    name, *arguments = operation
    if name == "to":
        return values.to(arguments[0])
    if name in ("add", "sub", "rsub"):
        number, alpha = (*arguments, 1)[:2]
        return getattr(torch, name)(values, number, alpha=alpha)
    if name == "radd":
        number, alpha = arguments
        return torch.add(torch.full((), number, dtype=values.dtype), values, alpha=alpha)
    return getattr(torch, name)(values, *arguments)


@dataclass(frozen=True)
class Taint:
    """What concrete data depends on.

    Args:
        draws: Draws from torch's generator that it was computed from.
        external: Values that came from outside of torch (NumPy, files, lists) or from a generator with its own seed.
        uninitialised: Memory that nothing was written to.
        operations: The last operations on the way, for the reason given in the plan.
    """

    draws: frozenset[int] = frozenset()
    external: bool = False
    uninitialised: bool = False
    operations: tuple[str, ...] = ()

    def __or__(self, other: Taint) -> Taint:
        if other is self or other == CLEAN:
            return self
        return Taint(
            self.draws | other.draws,
            self.external or other.external,
            self.uninitialised or other.uninitialised,
            self.operations or other.operations,
        )

    def through(self, operation: str) -> Taint:
        """The same after one more operation."""
        return replace(self, operations=(*self.operations, operation)[-4:])


CLEAN = Taint()


@dataclass(frozen=True)
class Uninitialised:
    """Memory that nothing was written to."""

    def taint(self) -> Taint:
        """What data computed from it depends on."""
        return Taint(uninitialised=True)


@dataclass(frozen=True)
class Const:
    """One value, already rounded to the dtype of the memory."""

    value: float

    def taint(self) -> Taint:
        """What data computed from it depends on."""
        return CLEAN

    def distribution(self) -> Constant | None:
        """The plan's distribution, or None for a value that float32 cannot hold."""
        return Constant(self.value) if abs(self.value) <= FLOAT32_MAX else None


@dataclass(frozen=True)
class Random:
    """An elementwise function of a recorded draw.

    Args:
        draw: Number of the draw.
        law: Distribution of the values as they are now.
        scale: The values are ``scale * base + shift``, base being the draw or its inverse error function.
        shift: See ``scale``.
        operations: What was done to the draw, in order.
    """

    draw: int
    law: Law
    scale: float = 1.0
    shift: float = 0.0
    operations: tuple[Operation, ...] = ()

    def taint(self) -> Taint:
        """What data computed from it depends on."""
        return Taint(frozenset((self.draw,)))

    def after(self, operation: Operation) -> Random | Const | None:
        """The value after an operation, or None where it is no longer an elementwise distribution with a name."""
        name, *arguments = operation
        steps = (*self.operations, operation)
        if name == "to":
            return replace(self, operations=steps)
        if name == "erfinv":
            # ``base`` can be the inverse error function of the draw itself only, so an affine map before it has no name.
            law = self.law.erfinv() if self.scale == 1 and self.shift == 0 else None
            return None if law is None else replace(self, law=law, operations=steps)
        if name == "clamp":
            low, high = (float("nan") if x is None else float(x) for x in (*arguments, None)[:2])
            law = self.law.clamp(low if low == low else -math.inf, high if high == high else math.inf)
            return None if law is None else replace(self, law=law, operations=steps)
        number, alpha = [*map(float, arguments), *(0.0, 1.0)[len(arguments) :]]
        scale, shift = {
            "mul": (number, 0.0),
            "div": (1.0 / number if number else math.nan, 0.0),
            "add": (1.0, alpha * number),
            "sub": (1.0, -alpha * number),
            "rsub": (-alpha, number),
            "radd": (alpha, number),
            "neg": (-1.0, 0.0),
        }[name]
        if scale == 0 and math.isfinite(shift):
            return Const(shift)
        law = self.law.affine(scale, shift)
        if law is None:
            return None
        return replace(self, law=law, scale=self.scale * scale, shift=self.shift * scale + shift, operations=steps)


@dataclass(frozen=True)
class Data:
    """Concrete values: the memory itself holds them."""

    origin: Taint

    def taint(self) -> Taint:
        """What data computed from it depends on."""
        return self.origin


@dataclass(frozen=True)
class Deferred(Data):
    """Values that an operation would have put into memory; it is made up for when something reads them.

    Args:
        origin: See :class:`Data`.
        job: Runs the operation.
    """

    job: Callable[[], object]


Value = Uninitialised | Const | Random | Data
