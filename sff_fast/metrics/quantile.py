"""Errors of forecasts that are distributions: pinball loss of quantiles, CRPS of sample paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .sums import to_double

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The levels at which sample paths are summarised."""

CHUNK = 1 << 22
"""Sample values that are sorted at a time."""


def pinball(quantile: torch.Tensor, target: torch.Tensor, level: float) -> torch.Tensor:
    """``level * (y - q)`` above the quantile, ``(1 - level) * (q - y)`` below it; any shape.

    Source: Koenker & Bassett, "Regression quantiles", Econometrica 46, 1978.
    """
    difference = target - quantile
    return torch.maximum(level * difference, (level - 1) * difference)


def crps_of_sorted(samples: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """CRPS of the empirical distribution of sample paths.

    ``mean |x_i - y| - 1/2 mean |x_i - x_j|`` over all i and j; the second mean is ``2 / n^2 * sum (2 i - n - 1) x_(i)``
    over the sorted samples.

    Args:
        samples: [B, S, ...], sorted along the second dimension.
        target: [B, ...].

    Returns:
        [B, ...].

    Source: Gneiting & Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 102, 2007, equation 21.
    """
    n = samples.shape[1]
    weights = (2 * torch.arange(1, n + 1, dtype=samples.dtype) - n - 1).view(-1, *[1] * (samples.dim() - 2))
    spread = (weights * samples).sum(dim=1) / n**2
    return (samples - target.unsqueeze(1)).abs().mean(dim=1) - spread


def quantiles_of_sorted(samples: torch.Tensor, levels: Sequence[float]) -> dict[float, torch.Tensor]:
    """Quantiles of sorted samples, interpolated linearly as ``torch.quantile`` and NumPy do by default.

    Args:
        samples: [B, S, ...], sorted along the second dimension.
        levels: Each from 0 to 1.

    Returns:
        Level to [B, ...].
    """
    last = samples.shape[1] - 1
    result = {}
    for level in levels:
        below = int(level * last)
        above = min(below + 1, last)
        result[level] = torch.lerp(samples[:, below], samples[:, above], level * last - below)
    return result


def loss_name(level: float) -> str:
    """The name of a level's pinball loss in :func:`distances`."""
    return f"quantile {level:g}"


def distances(
    target: torch.Tensor,
    quantiles: Mapping[float, torch.Tensor] | None,
    samples: torch.Tensor | None,
    levels: Sequence[float],
) -> dict[str, torch.Tensor]:
    """Pinball loss at each level, and CRPS.

    Args:
        target: float64 [B, H, C].
        quantiles: Level to [B, H, C]; None takes them from the samples.
        samples: [B, S, H, C]; None takes CRPS from the quantiles.
        levels: The levels; none for a point forecast.

    Returns:
        Name to float64 [B, H, C]; empty without levels.
    """
    if not levels:
        return {}
    found = {level: to_double(values) for level, values in (quantiles or {}).items()}
    crps = None
    if samples is not None:
        # In pieces: the sorted paths of a batch would take many times the memory of its targets.
        rows = max(1, CHUNK // max(1, samples[0].numel()))
        pieces, own = [], []
        for part, wanted in zip(samples.split(rows), target.split(rows), strict=True):
            ordered = to_double(part).sort(dim=1).values
            pieces.append(crps_of_sorted(ordered, wanted))
            own.append(quantiles_of_sorted(ordered, levels))
        crps = torch.cat(pieces)
        found = found or {level: torch.cat([one[level] for one in own]) for level in levels}
    losses = {loss_name(level): pinball(found[level], target, level) for level in levels}
    if crps is None:
        crps = 2 * torch.stack(list(losses.values())).mean(dim=0)
    return {**losses, "crps": crps}
