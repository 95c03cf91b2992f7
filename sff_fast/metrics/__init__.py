"""Errors of forecasts and of other tasks, accumulated batch by batch: no set of all forecasts is ever in memory."""

from .forecast import ForecastMetrics
from .sums import NotFiniteError, Sum

__all__ = ["ForecastMetrics", "NotFiniteError", "Sum"]
