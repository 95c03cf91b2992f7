"""What models are trained for: forecasting, imputation, anomaly detection.

Data knows its task: it cuts the batches, and ``Adapter.loss`` tells from a batch which loss is meant. The evaluation of a
task, made by :func:`evaluation`, calls the model and accumulates the errors; everything else (strategies, loop, resume,
early stopping, reports) is the same for all tasks.
"""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
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

    Raises:
        ArgumentError: ``data`` is something else than windows of a task.
    """
    return _of(data)(data, part)


def check(adapter: Any, data: Any) -> None:
    """Check before anything is computed that a model can do the task of the data, with windows of this length.

    Raises:
        ArgumentError: It cannot, or ``data`` is something else than windows of a task.
        MissingPackageError: The errors of this task need a package that is not installed.
    """
    _of(data).check(adapter, data)


def _of(data: Any) -> type[Evaluation]:
    task = getattr(data, "task", None)
    if task not in _EVALUATIONS:
        raise ArgumentError(
            f"data must be a ForecastData, ImputationData or AnomalyData, got {type(data).__name__}: "
            "make one of sff_fast.read_table(path)"
        )
    return _EVALUATIONS[task]
