"""Forecasts of a few test windows, in the data's own units, for the report's pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sff_fast.data.validate import show_time

if TYPE_CHECKING:
    from sff_fast.adapters import Adapter, Forecast
    from sff_fast.data import ForecastData


COVERAGE = 0.8
"""Share of outcomes that a forecast's interval is meant to hold: from its 10 % to its 90 % quantile."""


@dataclass(frozen=True)
class ForecastWindow:
    """One window of one channel with the forecasts of several models, in the data's own units.

    Args:
        channel: Name of the channel.
        start: Where the forecast begins: a time stamp, or ``"row 1234"``.
        step: The time between two rows, such as ``"1 h"``; empty where it is unknown.
        context: What the models saw.
        truth: What came, one value a step.
        predictions: Strategy name -> forecast, as long as ``truth``.
        intervals: Strategy name -> lower and upper bound of its central :data:`COVERAGE` interval, each as long as ``truth``;
            only for families that forecast a distribution.
    """

    channel: str
    start: str
    step: str
    context: Sequence[float]
    truth: Sequence[float]
    predictions: Mapping[str, Sequence[float]]
    intervals: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)


def sample_windows(data: ForecastData, adapters: Mapping[str, Adapter], count: int = 6) -> list[ForecastWindow]:
    """Forecast a few windows of the test part, evenly spaced over time and channels.

    Args:
        data: The windows.
        adapters: Strategy name -> model.
        count: How many windows, at most one a test window and channel.

    Returns:
        The windows in order of time; all values in the data's own units.
    """
    table, test = data.table, data.test
    count = min(count, test.n_starts * len(table.columns))
    step = _channel_step(len(table.columns), count)
    chosen = []
    for number in range(count):
        start = (2 * number + 1) * test.n_starts // (2 * count)
        chosen.append((start, number * step % len(table.columns)))
    forecasts = {name: _forecast(adapter, data, chosen) for name, adapter in adapters.items()}
    windows = []
    for number, (start, channel) in enumerate(chosen):
        first = test.border[0] + start * test.stride
        middle = first + data.context_length
        end = middle + data.prediction_length
        stamps = table.timestamps
        windows.append(
            ForecastWindow(
                channel=table.columns[channel],
                start=f"row {middle + 1}" if stamps is None else show_time(stamps[middle]),
                step=step_text(table.frequency),
                context=table.values[first:middle, channel].tolist(),
                truth=table.values[middle:end, channel].tolist(),
                predictions={name: shown[number][0] for name, shown in forecasts.items()},
                intervals={name: shown[number][1:] for name, shown in forecasts.items() if len(shown[number]) == 3},
            )
        )
    return windows


def _channel_step(channels: int, count: int) -> int:
    """From one shown channel to the next: about evenly spaced, and no channel twice before all were shown.

    Tables often repeat a pattern (the same quantities at several places); a step without a common divisor with the
    number of channels does not fall into it.
    """
    step = max(1, round(channels / count))
    while math.gcd(step, channels) > 1:
        step += 1
    return step


def step_text(frequency: str | None) -> str:
    """The time between two rows for an axis label: ``"15min"`` becomes ``"15 min"``, ``"h"`` becomes ``"1 h"``."""
    if not frequency:
        return ""
    unit = frequency.lstrip("0123456789")
    count = frequency.removesuffix(unit) or "1"
    words = {"D": "day", "W": "week", "M": "month", "Q": "quarter", "Y": "year", "B": "working day"}
    if unit not in words:
        return f"{count} {unit}"
    return f"{count} {words[unit]}" if count == "1" else f"{count} {words[unit]}s"


def _forecast(adapter: Adapter, data: ForecastData, chosen: Sequence[tuple[int, int]]) -> list[tuple[list[float], ...]]:
    """What one model forecasts for (start, channel) pairs of the test part, in the data's own units.

    Returns:
        For each pair the point forecast, and for families that forecast a distribution the two ends of its interval.
    """
    test = data.test
    if data.channel_independent:
        indices = [channel * test.n_starts + start for start, channel in chosen]
    else:
        indices = [start for start, _ in chosen]
    batch = test.batch(torch.tensor(indices))
    forecast = adapter.forecast(batch.context, data.prediction_length)
    parts = [part.cpu() for part in (forecast.mean, *_interval(forecast))]
    shown = []
    for item, (_, channel) in enumerate(chosen):
        column = 0 if data.channel_independent else channel
        shown.append(tuple(data.scaler.inverse(part[item, :, column], channel).tolist() for part in parts))
    return shown


def _interval(forecast: Forecast) -> tuple[torch.Tensor, ...]:
    """The ends of the central interval, each [B, H, C]; none of a point forecast, or of quantiles that lie elsewhere."""
    ends = ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2)
    if forecast.samples is not None:
        return tuple(forecast.samples.float().quantile(torch.tensor(ends, device=forecast.samples.device), dim=1))
    found = [values for end in ends for level, values in (forecast.quantiles or {}).items() if abs(level - end) < 1e-6]
    return tuple(found) if len(found) == 2 else ()
