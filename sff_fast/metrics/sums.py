"""Sums whose last digits do not depend on the size of the batches."""

from __future__ import annotations

import torch

from ..errors import SffFastError


class NotFiniteError(SffFastError, ArithmeticError):
    """A model's output or target is NaN or infinite."""


def to_double(tensor: torch.Tensor) -> torch.Tensor:
    """The values in float64 on the CPU, without gradients."""
    return tensor.detach().to("cpu", torch.float64)


class Sum:
    """A compensated float64 sum for each element of a shape, on the CPU.

    Args:
        shape: The shape, such as channels and horizon steps.

    Source: Neumaier, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen", 1974.
    """

    def __init__(self, *shape: int) -> None:
        self._total = torch.zeros(shape, dtype=torch.float64)
        self._lost = torch.zeros_like(self._total)

    def add(self, part: torch.Tensor) -> None:
        """Add a float64 tensor of the shape."""
        total = self._total + part
        larger = torch.where(self._total.abs() >= part.abs(), self._total, part)
        smaller = torch.where(self._total.abs() >= part.abs(), part, self._total)
        self._lost += (larger - total) + smaller
        self._total = total

    def value(self) -> torch.Tensor:
        """The sum."""
        return self._total + self._lost
