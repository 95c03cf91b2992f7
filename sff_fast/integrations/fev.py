"""fev: forecasts in the form that ``fev.Task.evaluation_summary`` takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from sff_fast.errors import ArgumentError

if TYPE_CHECKING:
    from gluonts.model import Forecast


def predictions(forecasts: Iterable[Forecast], quantile_levels: Iterable[float] = ()) -> list[dict[str, list[float]]]:
    """The predictions of one window of a fev task, of targets of one channel.

    Args:
        forecasts: What :class:`sff_fast.integrations.gluonts.AdapterPredictor` gave for the window's series, in order.
        quantile_levels: The task's ``quantile_levels``, default none.

    Returns:
        A dict a series: ``"predictions"`` (the point forecast) and the levels as text, each a list of H floats.

    Raises:
        ArgumentError: A target has several channels, or a family's own quantiles do not reach a level.
    """
    levels = list(quantile_levels)
    rows = []
    for forecast in forecasts:
        mean = np.asarray(forecast.mean)
        if mean.ndim != 1:
            raise ArgumentError(f"fev takes a target at a time, got a forecast of {mean.shape[1]} channels: split the series")
        own = [float(key) for key in getattr(forecast, "forecast_keys", []) if key != "mean"]
        missing = [level for level in levels if hasattr(forecast, "forecast_keys") and level not in own]
        if missing:
            raise ArgumentError(
                f"the model gives no quantile {missing[0]:g}, it gives {', '.join(f'{level:g}' for level in own) or 'none'}: "
                f"ask for these levels"
            )
        rows.append({"predictions": mean.tolist(), **{str(level): forecast.quantile(level).tolist() for level in levels}})
    return rows
