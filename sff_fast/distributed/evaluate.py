"""Errors over all windows of a part, each window forecast by one of the processes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from .. import tasks
from ..data import ForecastData
from ..metrics import NotFiniteError
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
        call: Calls the model (a wrapped model's ``run``); default: it is called directly.

    Returns:
        As :func:`sff_fast.evaluate`, the same on every process; with a forecast that is not finite ``mse`` and ``mae`` are
        None and ``not_finite`` says where.
    """
    windows = getattr(data, part)
    evaluation = tasks.evaluation(data, part)
    batches = torch.arange(len(windows)).split(batch_size)
    problem = None
    for turn in range(0, len(batches), group.size):
        # A process without a batch of its own forecasts too: parameters are gathered by all processes or by none.
        mine = turn + group.rank
        indices = batches[mine] if mine < len(batches) else batches[turn]
        batch = windows.batch(indices)
        predict = functools.partial(evaluation.predict, adapter, batch.to(group.device), int(indices[0]))
        output = predict() if call is None else call(predict)
        if mine >= len(batches):
            continue
        try:
            evaluation.update(output, batch)
        except NotFiniteError as error:
            problem = problem or str(error)
    problems = [text for text in group.gather(problem) if text]
    if problems:
        warnings.warn(f"{part} part: {problems[0]}", stacklevel=2)
        return {"mse": None, "mae": None, "not_finite": problems[0]}
    total = tasks.evaluation(data, part)
    for sums in group.gather(evaluation.sums()):
        total.add_sums(sums)
    return total.to_json()
