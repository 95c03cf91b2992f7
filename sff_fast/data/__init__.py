"""Tables of time series, checked, split, standardised and cut into windows."""

from .forecast import ForecastData
from .order import epoch_order
from .scaler import Scaler
from .split import Borders, parse_split, split_borders
from .table import Table, read_table
from .windows import Batch, WindowSet

__all__ = [
    "Batch",
    "Borders",
    "ForecastData",
    "Scaler",
    "Table",
    "WindowSet",
    "epoch_order",
    "parse_split",
    "read_table",
    "split_borders",
]
