"""The distributions that an init plan is made of.

Elementwise ones (:class:`Uniform`, :class:`Normal`, :class:`TruncNormal`, :class:`Constant`) are regenerated inside the
kernels. :class:`Materialized` stands for values that no elementwise distribution describes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Union

from sff_fast.errors import PlanError

FLOAT32_MAX = 3.4028234663852886e38
SMALLEST_MASS = 2.0**-60
"""Stream version 1 cannot sample a truncated normal that holds less of the normal's probability than this."""


def _set_floats(instance: Any, *names: str) -> None:
    """Store the named fields as Python floats that are finite in fp32, or say which one is not."""
    for name in names:
        value = getattr(instance, name)
        label = f"{type(instance).__name__}.{name}"
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise PlanError(f"{label} must be a number, got {value!r}")
        value = float(value)
        if not abs(value) <= FLOAT32_MAX:
            raise PlanError(f"{label} must be finite in float32, got {value!r}")
        object.__setattr__(instance, name, value)


def _numbers(*values: float) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


@dataclass(frozen=True)
class Uniform:
    """The continuous uniform distribution on [low, high].

    Args:
        low: Lower bound.
        high: Upper bound, at least ``low``.

    Raises:
        PlanError: A bound is not finite in float32, or ``low`` exceeds ``high``.
    """

    low: float
    high: float
    kind: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        _set_floats(self, "low", "high")
        if self.low > self.high:
            raise PlanError(f"Uniform needs low <= high, got low={self.low!r} and high={self.high!r}")
        if self.high - self.low > FLOAT32_MAX:
            raise PlanError(f"Uniform is wider than float32 can hold: low={self.low!r}, high={self.high!r}")

    def __str__(self) -> str:
        return f"Uniform({_numbers(self.low, self.high)})"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that :func:`distribution_from_json` reads back."""
        return _to_json(self)


@dataclass(frozen=True)
class Normal:
    """The normal distribution.

    Args:
        mean: Mean, default 0.
        std: Standard deviation, at least 0, default 1.

    Raises:
        PlanError: A number is not finite in float32, or ``std`` is negative.
    """

    mean: float = 0.0
    std: float = 1.0
    kind: ClassVar[str] = "normal"

    def __post_init__(self) -> None:
        _set_floats(self, "mean", "std")
        if self.std < 0:
            raise PlanError(f"Normal.std must be at least 0, got {self.std!r}")

    def __str__(self) -> str:
        return f"Normal({_numbers(self.mean, self.std)})"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that :func:`distribution_from_json` reads back."""
        return _to_json(self)


def truncated_mass(mean: float, std: float, a: float, b: float) -> float:
    """The probability that a normal variable lies in [a, b].

    Both bounds on one side of the mean go through the complementary error function of that side, so that far tails
    keep their relative precision.

    Args:
        mean: Mean of the normal.
        std: Its standard deviation, above 0.
        a: Lower bound.
        b: Upper bound.

    Returns:
        P(a <= X <= b).
    """
    low, high = (a - mean) / (std * math.sqrt(2.0)), (b - mean) / (std * math.sqrt(2.0))
    if low > 0:
        return 0.5 * (math.erfc(low) - math.erfc(high))
    if high < 0:
        return 0.5 * (math.erfc(-high) - math.erfc(-low))
    return 0.5 * (math.erf(high) - math.erf(low))


@dataclass(frozen=True)
class TruncNormal:
    """The normal distribution restricted to [a, b].

    Args:
        mean: Mean of the normal that is truncated.
        std: Its standard deviation, above 0.
        a: Lower bound, absolute (not in units of ``std``).
        b: Upper bound, absolute.

    Raises:
        PlanError: A number is not finite in float32, ``std`` is not positive, ``a`` exceeds ``b``, or [a, b] holds less
            than 2**-60 of the normal's probability.
    """

    mean: float
    std: float
    a: float
    b: float
    kind: ClassVar[str] = "trunc_normal"

    def __post_init__(self) -> None:
        _set_floats(self, "mean", "std", "a", "b")
        if self.std <= 0:
            raise PlanError(f"TruncNormal.std must be above 0, got {self.std!r}")
        if self.a > self.b:
            raise PlanError(f"TruncNormal needs a <= b, got a={self.a!r} and b={self.b!r}")
        mass = truncated_mass(self.mean, self.std, self.a, self.b)
        if mass < SMALLEST_MASS:
            raise PlanError(
                f"TruncNormal({self.mean!r}, {self.std!r}, {self.a!r}, {self.b!r}) holds {mass:.3g} of the normal's "
                f"probability, fewer than 2**-60 cannot be sampled"
            )

    def __str__(self) -> str:
        return f"TruncNormal({_numbers(self.mean, self.std, self.a, self.b)})"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that :func:`distribution_from_json` reads back."""
        return _to_json(self)


@dataclass(frozen=True)
class Constant:
    """One value for every element.

    Args:
        value: The value, finite in float32.

    Raises:
        PlanError: ``value`` is not finite in float32.
    """

    value: float
    kind: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        _set_floats(self, "value")

    def __str__(self) -> str:
        return f"Constant({_numbers(self.value)})"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that :func:`distribution_from_json` reads back."""
        return _to_json(self)


RECIPES = ("orthogonal", "sparse")


@dataclass(frozen=True)
class Materialized:
    """Values that no elementwise distribution describes.

    Args:
        kind: ``"table"`` (fixed values, stored beside the plan), ``"recipe"`` (drawn by a named torch function) or
            ``"opaque"`` (only the factory can draw them).
        reason: Why the values are not elementwise, for the printed plan.
        recipe: ``"orthogonal"`` or ``"sparse"`` where ``kind`` is ``"recipe"``.
        gain: Factor of a recipe's result, default 1.
        sparsity: Fraction of zeros a column for ``"sparse"``, in [0, 1].
        std: Standard deviation of the nonzeros for ``"sparse"``.
        shape: Shape of the tensor that the recipe draws.
        digest: Hex sha256 of the stored values where ``kind`` is ``"table"``.

    Raises:
        PlanError: The fields do not belong together.
    """

    kind: str
    reason: str
    recipe: str | None = None
    gain: float = 1.0
    sparsity: float | None = None
    std: float | None = None
    shape: tuple[int, ...] | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("table", "recipe", "opaque"):
            raise PlanError(f"Materialized.kind must be 'table', 'recipe' or 'opaque', got {self.kind!r}")
        if (self.kind == "recipe") != (self.recipe is not None):
            raise PlanError(f"Materialized.recipe belongs to kind 'recipe', got kind {self.kind!r} and {self.recipe!r}")
        if self.kind != "table" and self.digest is not None:
            raise PlanError(f"Materialized.digest belongs to kind 'table', got kind {self.kind!r}")
        _set_floats(self, "gain")
        if self.recipe is None:
            return
        if self.recipe not in RECIPES:
            raise PlanError(f"Materialized.recipe must be one of {', '.join(RECIPES)}, got {self.recipe!r}")
        if self.shape is None or len(self.shape) < 2 or any(size < 0 for size in self.shape):
            raise PlanError(f"Materialized.shape of {self.recipe!r} must have two or more sizes, got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if self.recipe == "sparse":
            if len(self.shape) != 2:
                raise PlanError(f"Materialized.shape of 'sparse' must have two sizes, got {self.shape!r}")
            if self.sparsity is None or self.std is None:
                raise PlanError("Materialized.sparsity and .std must be given for the recipe 'sparse'")
            _set_floats(self, "sparsity", "std")
            if not 0 <= self.sparsity <= 1 or self.std < 0:
                raise PlanError(
                    f"the recipe 'sparse' needs 0 <= sparsity <= 1 and std >= 0, "
                    f"got sparsity={self.sparsity!r} and std={self.std!r}"
                )

    def __str__(self) -> str:
        if self.recipe == "orthogonal":
            return f"orthogonal(gain={self.gain:.6g})"
        if self.recipe == "sparse":
            scale = "" if self.gain == 1 else f", gain={self.gain:.6g}"
            return f"sparse(sparsity={self.sparsity:.6g}, std={self.std:.6g}{scale})"
        return self.kind

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict that :func:`distribution_from_json` reads back."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["how"] = content.pop("kind")
        if self.shape is not None:
            content["shape"] = list(self.shape)
        return {"kind": "materialized", **{key: value for key, value in content.items() if value is not None}}


Distribution = Union[Uniform, Normal, TruncNormal, Constant, Materialized]
ELEMENTWISE = (Uniform, Normal, TruncNormal, Constant)


def _to_json(distribution: Distribution) -> dict[str, Any]:
    return {"kind": distribution.kind, **{field.name: getattr(distribution, field.name) for field in fields(distribution)}}


def is_random(distribution: Distribution) -> bool:
    """Whether two seeds give two samples."""
    if isinstance(distribution, Materialized):
        return distribution.kind != "table"
    return not isinstance(distribution, Constant)


def distribution_from_json(content: Any) -> Distribution:
    """Read what ``to_json`` of a distribution wrote.

    Args:
        content: The parsed JSON value.

    Returns:
        The distribution.

    Raises:
        PlanError: It is not the JSON form of a distribution.
    """
    if not isinstance(content, dict):
        raise PlanError(f"a distribution must be a JSON object, got {content!r}")
    rest = {key: value for key, value in content.items() if key != "kind"}
    by_kind = {cls.kind: cls for cls in ELEMENTWISE}
    kind = content.get("kind")
    try:
        if kind == "materialized":
            rest["kind"] = rest.pop("how")
            if rest.get("shape") is not None:
                rest["shape"] = tuple(rest["shape"])
            return Materialized(**rest)
        if kind in by_kind:
            return by_kind[kind](**rest)
    except (TypeError, KeyError) as error:
        raise PlanError(f"the distribution {content!r} has wrong or missing fields ({error})") from error
    raise PlanError(f"unknown distribution kind {kind!r}: expected {', '.join(by_kind)} or materialized")
