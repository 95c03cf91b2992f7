"""What a landscape gave: figures of each centre, the verdict, and the files."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sff_fast.files import atomic_write

NEAR = 0.5
"""Share of the span within which the rise of the loss is averaged."""


@dataclasses.dataclass
class LandscapeResult:
    """What :func:`sff_fast.landscape` gave.

    Attributes:
        axis: The coordinates of the grid, ascending, in units of the filters' norms; the same along both directions.
        centres: For each centre: ``name``, ``alpha``, ``seed``, ``source``, ``weights`` (hash), ``loss``, ``losses``
            (``losses[i][j]`` at ``axis[i]`` along direction 0 and ``axis[j]`` along direction 1; None where it is not
            finite), ``rise``, ``lowest`` and ``hessian``.
        verdict: The steepness around the centres in words.
        metrics: What ``metrics.json`` holds.
    """

    axis: list[float]
    centres: list[dict[str, Any]]
    verdict: str
    metrics: dict[str, Any]

    @classmethod
    def of(cls, metrics: dict[str, Any]) -> LandscapeResult:
        """The result that a ``metrics.json`` holds."""
        found = metrics["landscape"]
        return cls(found["axis"], found["centres"], metrics["verdict"], metrics)


def rise(axis: Sequence[float], losses: Sequence[Sequence[float | None]]) -> float | None:
    """How much higher the loss is nearby than at the centre: its mean over the points within half of the span.

    Args:
        axis: Ascending coordinates with 0 in the middle.
        losses: The grid.

    Returns:
        The mean difference; None where a loss that near is not finite.
    """
    middle = len(axis) // 2
    limit = NEAR * axis[-1] * (1 + 1e-9)
    near = [
        losses[i][j]
        for i, a in enumerate(axis)
        for j, b in enumerate(axis)
        if (i, j) != (middle, middle) and math.hypot(a, b) <= limit
    ]
    centre = losses[middle][middle]
    if centre is None or not near or any(loss is None for loss in near):
        return None
    return math.fsum(loss - centre for loss in near) / len(near)


def lowest(axis: Sequence[float], losses: Sequence[Sequence[float | None]]) -> dict[str, float] | None:
    """The point of the grid with the lowest loss, as ``{"a", "b", "loss"}``; None where no loss is finite."""
    points = [(loss, a, b) for a, row in zip(axis, losses) for b, loss in zip(axis, row) if loss is not None]
    if not points:
        return None
    loss, a, b = min(points, key=lambda point: (point[0], math.hypot(point[1], point[2])))
    return {"a": a, "b": b, "loss": loss}


def verdict(windows: int, span: float, centres: Sequence[Mapping[str, Any]]) -> str:
    """Say in plain words around which centre the loss rises least.

    Args:
        windows: Validation windows that the loss was measured on.
        span: Half of the grid's width.
        centres: The entries of ``landscape.centres``.
    """
    known = [centre for centre in centres if centre["rise"] is not None]
    steep = [centre["name"] for centre in centres if centre["rise"] is None]
    parts = [f"{_signed(centre['rise'])} around the {centre['name']} weights (loss {centre['loss']:.4g})" for centre in known]
    text = ""
    if parts:
        text = f"Within a distance of {NEAR * span:g} the loss changes on average by {_listed(parts)}"
        text += f", on {windows} validation windows."
    if len(known) > 1:
        flattest = min(known, key=lambda centre: abs(centre["rise"]))
        text += f" It is flattest around the {flattest['name']} weights"
        text += ", along this one pair of random directions; flatter is not by itself better: compare the test errors."
    if steep:
        text += f" Around the {_listed(steep)} weights the loss is not finite everywhere that near."
    return text.strip()


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def write_csv(path: Path, axis: Sequence[float], centres: Sequence[Mapping[str, Any]]) -> None:
    """One line a point: centre, a, b, loss; an empty loss is not finite."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("centre", "a", "b", "loss"))
    for centre in centres:
        for a, row in zip(axis, centre["losses"]):
            table.writerows((centre["name"], a, b, "" if loss is None else repr(loss)) for b, loss in zip(axis, row))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
