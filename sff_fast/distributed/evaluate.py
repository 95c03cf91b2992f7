"""Errors over all windows of a part, each window forecast by one of the processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..data import ForecastData
from ..metrics import ForecastMetrics, NotFiniteError
from .group import Group


def evaluate(
    adapter: Any,
    data: ForecastData,
    part: str,
    group: Group,
    *,
    batch_size: int = 256,
    call: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Forecast every window of a part once, whatever the number of processes.

    The batches, and so the seeds of families that draw samples, are those of :func:`sff_fast.evaluate`; they are dealt out in
    turn. Sums are float64 and compensated: the number of processes changes an error by less than 1e-12 of it.

    Args:
        adapter: The model.
        data: The windows.
        part: ``"train"``, ``"val"`` or ``"test"``.
        group: The processes.
        batch_size: Windows at a time in one process.
        call: Calls ``adapter.forecast`` (a wrapped model's ``run``); default: it is called directly.

    Returns:
        As :func:`sff_fast.evaluate`, the same on every process; with a forecast that is not finite ``mse`` and ``mae`` are
        None and ``not_finite`` says where.
    """
    windows = getattr(data, part)
    metrics = ForecastMetrics(data.prediction_length, len(data.columns))
    batches = torch.arange(len(windows)).split(batch_size)
    problem = None
    for turn in range(0, len(batches), group.size):
        # A process without a batch of its own forecasts too: parameters are gathered by all processes or by none.
        mine = turn + group.rank
        indices = batches[mine] if mine < len(batches) else batches[turn]
        batch = windows.batch(indices)
        context = batch.context.to(group.device)

        def forecast(context: torch.Tensor = context, seed: int = int(indices[0])) -> torch.Tensor:
            return adapter.forecast(context, data.prediction_length, seed=seed).mean

        prediction = forecast() if call is None else call(forecast)
        if mine >= len(batches):
            continue
        try:
            metrics.update(prediction, batch.target, batch.channel, batch.index)
        except NotFiniteError as error:
            problem = problem or str(error)
    problems = [text for text in group.gather(problem) if text]
    if problems:
        warnings.warn(f"{part} part: {problems[0]}", stacklevel=2)
        return {"mse": None, "mae": None, "not_finite": problems[0]}
    total = ForecastMetrics(data.prediction_length, len(data.columns))
    for sums in group.gather(metrics.sums()):
        total.add_sums(*sums)
    return total.to_json()
