"""A forecast beyond the end of a table, in the data's own units."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ..data import Scaler, Table
from ..data.forecast import without_constants
from ..data.frequency import infer_frequency
from ..errors import ArgumentError, DataError
from ..exhaustion import advised
from ..metrics.quantile import LEVELS
from .config import resolve_device


@dataclasses.dataclass(frozen=True)
class TableForecast:
    """What comes after the end of a table.

    Attributes:
        mean: float64 [H, C], the point forecast in the data's own units.
        quantiles: Level to float64 [H, C]: the family's own, or, for a family that draws sample paths, those of the
            paths at the levels :data:`sff_fast.metrics.quantile.LEVELS`; None where it has neither.
        columns: Name of each channel.
        timestamps: ``datetime64[us]`` [H], continuing those of the table, or None where it has none.
    """

    mean: np.ndarray
    quantiles: dict[float, np.ndarray] | None
    columns: list[str]
    timestamps: np.ndarray | None


@advised("try fewer num_samples (--num-samples), a shorter context, or some columns at a time (--columns)")
def forecast(
    adapter: Any,
    table: Table,
    context_length: int,
    prediction_length: int,
    *,
    scaler: Scaler | None = None,
    device: str = "auto",
    seed: int = 0,
    num_samples: int | None = None,
) -> TableForecast:
    """Forecast the rows that follow a table from its last ``context_length`` rows.

    Args:
        adapter: The model; it is moved to the device.
        table: The past. Channel-independent families forecast each channel on its own.
        context_length: Rows that the model sees.
        prediction_length: Rows H to forecast.
        scaler: Standardises the channels for the model and turns the forecast back into their units; give the one that
            the model was fine-tuned with (``ForecastData.scaler``). Default: fitted on the whole table.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        seed: For families that draw sample paths; the global generators are left as they were.
        num_samples: How many paths they draw. Default: the family's own number.

    Returns:
        The forecast.

    Raises:
        ArgumentError: The lengths do not fit the model, the scaler does not fit the table, or a family that draws no
            sample paths is asked for some.
        DataError: The table is shorter than the context, its time stamps follow no rule that could be continued, or without a
            scaler a channel is constant (with ``table.drop`` such channels are left out).
        ExhaustedError: There is not enough memory.
    """
    adapter.check_lengths(context_length, prediction_length)
    if len(table) < context_length:
        raise DataError(f"{table.source!r} has {len(table)} rows, fewer than context_length ({context_length}): give more rows")
    if scaler is None:
        table = without_constants(table, (0, len(table)), "the table")
        scaler = Scaler.fit(table.values)
    if len(scaler.mean) != len(table.columns):
        raise ArgumentError(f"scaler must have one mean for each of the {len(table.columns)} channels, got {len(scaler.mean)}")
    device = resolve_device(device)
    adapter.model.to(device)
    past = torch.from_numpy(scaler.transform(table.values[-context_length:]).astype(np.float32))
    context = past.T.unsqueeze(2).contiguous() if adapter.channel_independent else past.unsqueeze(0)
    result = adapter.forecast(context.to(device), prediction_length, seed=seed, num_samples=num_samples)
    quantiles = result.quantiles
    if quantiles is None and result.samples is not None:
        levels = torch.tensor(LEVELS, dtype=result.samples.dtype, device=result.samples.device)
        quantiles = dict(zip(LEVELS, result.samples.quantile(levels, dim=1), strict=True))

    def to_units(values: torch.Tensor) -> np.ndarray:
        values = values.double().cpu()
        return scaler.inverse((values.squeeze(2).T if adapter.channel_independent else values.squeeze(0)).numpy())

    return TableForecast(
        mean=to_units(result.mean),
        quantiles=None if quantiles is None else {level: to_units(values) for level, values in quantiles.items()},
        columns=list(table.columns),
        timestamps=_continue(table, prediction_length),
    )


def _continue(table: Table, steps: int) -> np.ndarray | None:
    """The time stamps of the rows that follow a table."""
    if table.timestamps is None:
        return None
    frequency = infer_frequency(table.timestamps) if len(table) > 1 else None
    if frequency is None:
        raise DataError(
            f"{table.source!r}: the time stamps follow no regular step, so a forecast's cannot be told: "
            "give the table on a regular grid, or without time stamps"
        )
    last = table.timestamps[-1]
    if frequency.kind == "fixed":
        end = last + np.timedelta64(steps * frequency.count, "us")
    elif frequency.kind == "months":
        end = last.astype("datetime64[M]") + steps * frequency.count
    else:
        end = np.busday_offset(last.astype("datetime64[D]"), steps * frequency.count)
    return frequency.grid(np.array([last, end], dtype="datetime64[us]"))[1:]
