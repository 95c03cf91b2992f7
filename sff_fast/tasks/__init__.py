"""What models are trained for: forecasting, imputation, anomaly detection.

Data knows its task: it cuts the batches, and ``Adapter.loss`` tells from a batch which loss is meant. The evaluation of a
task, made by :func:`evaluation`, calls the model and accumulates the errors; everything else (strategies, loop, resume,
early stopping, reports) is the same for all tasks.
"""

from __future__ import annotations

from typing import Any

from .anomaly import AnomalyEvaluation
from .base import Evaluation
from .forecasting import ForecastEvaluation
from .imputation import ImputationEvaluation

__all__ = ["AnomalyEvaluation", "Evaluation", "ForecastEvaluation", "ImputationEvaluation", "check", "evaluation"]

_EVALUATIONS: dict[str, type[Evaluation]] = {
    "forecast": ForecastEvaluation,
    "imputation": ImputationEvaluation,
    "anomaly": AnomalyEvaluation,
}


def evaluation(data: Any, part: str) -> Evaluation:
    """The evaluation of a part of the data, with nothing accumulated yet.

    Args:
        data: The windows, which know their task.
        part: ``"train"``, ``"val"`` or ``"test"``.
    """
    return _EVALUATIONS[data.task](data, part)


def check(adapter: Any, data: Any) -> None:
    """Check before anything is computed that a model can do the task of the data, with windows of this length.

    Raises:
        ArgumentError: It cannot.
        MissingPackageError: The errors of this task need a package that is not installed.
    """
    _EVALUATIONS[data.task].check(adapter, data)
