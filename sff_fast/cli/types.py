"""What option values may look like. Each type refuses a value in one line that says what it expects."""

from __future__ import annotations

import csv
import math
from typing import Any

import click

MAX_SEED = 2**64 - 1


class Number(click.ParamType):
    """A finite number within bounds (click's own range lets NaN through).

    Args:
        low: Lower bound.
        high: Upper bound, or None.
        open_low: Whether the lower bound itself is refused.
    """

    name = "number"

    def __init__(self, low: float, high: float | None = None, open_low: bool = False) -> None:
        self.low, self.high, self.open_low = low, high, open_low

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse and check."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"expected {self.expected()}, got {value!r}", param, ctx)
        above = number > self.low if self.open_low else number >= self.low
        below = self.high is None or number <= self.high
        if not (math.isfinite(number) and above and below):
            self.fail(f"expected {self.expected()}, got {str(value).strip()}", param, ctx)
        return number

    def expected(self) -> str:
        """The bounds in words."""
        start = f"above {self.low:g}" if self.open_low else f"of at least {self.low:g}"
        if self.high is None:
            return f"a number {start}"
        if self.open_low:
            return f"a number {start} and up to {self.high:g}"
        return f"a number from {self.low:g} to {self.high:g}"


class Integer(click.ParamType):
    """An integer within bounds.

    Args:
        low: Smallest value.
        high: Largest value, or None.
    """

    name = "integer"

    def __init__(self, low: int, high: int | None = None) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse and check."""
        expected = f"an integer of at least {self.low}"
        if self.high is not None:
            expected = f"an integer from {self.low} to {'2**64 - 1' if self.high == MAX_SEED else self.high}"
        try:
            number = int(value)
        except ValueError:
            self.fail(f"expected {expected}, got {value!r}", param, ctx)
        if number < self.low or (self.high is not None and number > self.high):
            self.fail(f"expected {expected}, got {number}", param, ctx)
        return number


class Alpha(click.ParamType):
    """alpha: a number from 0 to 1, or patterns with one each, ``head.*=1,*=0.7`` (the first match wins)."""

    name = "alpha"
    _number = Number(0, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | dict[str, float]:
        """Parse and check."""
        if not isinstance(value, str) or "=" not in value:
            return self._number.convert(value, param, ctx)
        alphas: dict[str, float] = {}
        for part in value.split(","):
            pattern, equals, number = part.rpartition("=")
            if not equals or not pattern.strip():
                self.fail(f"expected pattern=number, got {part!r}", param, ctx)
            if pattern.strip() in alphas:
                self.fail(f"the pattern {pattern.strip()!r} is given twice", param, ctx)
            alphas[pattern.strip()] = self._number.convert(number.strip(), param, ctx)
        return alphas


class Numbers(click.ParamType):
    """A comma-separated list of different numbers, such as ``0.5,0.7,0.9``."""

    name = "list"

    def __init__(self, number: Number) -> None:
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse and check."""
        if isinstance(value, tuple):
            return value
        numbers = tuple(self.number.convert(part.strip(), param, ctx) for part in _parts(self, value, param, ctx))
        return _distinct(self, numbers, param, ctx)


class Seeds(click.ParamType):
    """Seeds: a list such as ``0,1,2``, or how many, counted from 0: ``3`` is the same. ``7,`` is seed 7 alone."""

    name = "seeds"
    _count = Integer(1, 10_000)
    _seed = Integer(0, MAX_SEED)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse and check."""
        if isinstance(value, tuple):
            return value
        if "," not in value:
            return tuple(range(self._count.convert(value, param, ctx)))
        seeds = tuple(self._seed.convert(part.strip(), param, ctx) for part in _parts(self, value, param, ctx))
        return _distinct(self, seeds, param, ctx)


class Names(click.ParamType):
    """A comma-separated list of different names out of a set.

    Args:
        what: What is listed, for messages.
        choices: The names that there are.
    """

    name = "list"

    def __init__(self, what: str, choices: tuple[str, ...]) -> None:
        self.what, self.choices = what, choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Parse and check."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip().lower() for part in _parts(self, value, param, ctx))
        for name in names:
            if name not in self.choices:
                self.fail(f"unknown {self.what} {name!r}: expected some of {', '.join(self.choices)}", param, ctx)
        return _distinct(self, names, param, ctx)


class Columns(click.ParamType):
    """Names of columns, ``load,temperature``; a name that holds a comma stands in double quotes."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Parse and check."""
        if isinstance(value, tuple):
            return value
        try:
            names = next(csv.reader([value], skipinitialspace=True, strict=True), [])
        except csv.Error as error:
            self.fail(f"expected a comma-separated list, got {value!r} ({error})", param, ctx)
        if not names or not all(name.strip() for name in names):
            self.fail(f"expected a comma-separated list without gaps, got {value!r}", param, ctx)
        return _distinct(self, tuple(names), param, ctx)


class GroupAlphas(click.ParamType):
    """A group of parameters with its alphas, ``head=0.5,0.9``."""

    name = "group"
    _numbers = Numbers(Number(0, 1))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, tuple[float, ...]]:
        """Parse and check."""
        if isinstance(value, tuple):
            return value
        group, equals, numbers = value.partition("=")
        if not equals or not group.strip():
            self.fail(f"expected a group and its alphas, such as head=0.5,0.9, got {value!r}", param, ctx)
        return group.strip(), self._numbers.convert(numbers, param, ctx)


def _parts(kind: click.ParamType, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
    """The parts of a list; one comma may end it, so that a list of one can be told from a count."""
    parts = value.removesuffix(",").split(",")
    if not all(part.strip() for part in parts):
        kind.fail(f"expected a comma-separated list without gaps, got {value!r}", param, ctx)
    return parts


def _distinct(
    kind: click.ParamType, values: tuple[Any, ...], param: click.Parameter | None, ctx: click.Context | None
) -> tuple[Any, ...]:
    for position, value in enumerate(values):
        if value in values[:position]:
            kind.fail(f"{value} is listed twice", param, ctx)
    return values
