"""Fine-tune, compare, evaluate and forecast.

The paper's strategies (:mod:`strategies`) share one loop (:mod:`loop`); :mod:`run` puts a run around it and
:mod:`compare` a table of runs.
"""

from .compare import compare
from .evaluate import evaluate
from .predict import TableForecast, forecast
from .progress import Progress, Silent
from .result import CompareResult, RunResult
from .run import finetune
from .strategies import STRATEGIES, Strategy
from .sweep import sweep
from .verdict import Choice, choose, verdict
from .windows import WindowErrors

__all__ = [
    "STRATEGIES",
    "Choice",
    "CompareResult",
    "Progress",
    "RunResult",
    "Silent",
    "Strategy",
    "TableForecast",
    "WindowErrors",
    "choose",
    "compare",
    "evaluate",
    "finetune",
    "forecast",
    "sweep",
    "verdict",
]
