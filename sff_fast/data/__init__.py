"""Tables of time series, checked, split, standardised and cut into windows."""

from .anomaly import AnomalyData, SeriesBatch
from .forecast import ForecastData
from .imputation import ImputationData, MaskedBatch
from .order import epoch_order
from .scaler import Scaler
from .split import Borders, parse_split, split_borders
from .table import Table, read_table
from .windows import Batch, WindowSet

__all__ = [
    "AnomalyData",
    "Batch",
    "Borders",
    "ForecastData",
    "ImputationData",
    "MaskedBatch",
    "Scaler",
    "SeriesBatch",
    "Table",
    "WindowSet",
    "epoch_order",
    "parse_split",
    "read_table",
    "split_borders",
]
