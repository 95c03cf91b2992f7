"""Errors of a model over all windows of a part."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch

from .. import tasks
from ..data import ForecastData
from ..distributed.group import Group
from ..distributed.parallel import Parallel
from ..errors import ArgumentError
from ..exhaustion import told
from ..metrics import NotFiniteError
from ..resident import Ceiling
from .config import resolve_device
from .interrupts import StopRequest
from .progress import Progress, Silent
from .runtime import seeded
from .stages import Stages
from .windows import WindowErrors

PARTS = ("train", "val", "test")

SLACK = 16 << 20
"""Bytes of freed memory by which an evaluation may grow before they are given back."""


def evaluate(
    adapter: Any,
    data: ForecastData,
    part: str = "test",
    *,
    batch_size: int = 256,
    device: str = "auto",
    progress: Progress | None = None,
    group: Group | None = None,
    windows: WindowErrors | None = None,
) -> dict[str, Any]:
    """Give a model every window of a part and measure the error; nothing is dropped.

    Args:
        adapter: The model, with the weights that it has; it is moved to the device.
        data: The windows.
        part: ``"train"``, ``"val"`` or ``"test"`` (default).
        batch_size: Windows at a time.
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        progress: Told after every batch.
        group: Processes that share the forecasts, as :func:`sff_fast.distributed.join` gives them, each with the whole model;
            all of them call this, and get the same. Default: this process alone.
        windows: Receives the place, ``mse`` and ``mae`` of every window. Default None.

    Returns:
        ``mse``, ``mae``, ``rmse`` and more, on standardised data, each window with the same weight; what more depends on
        the task of the data, see :class:`sff_fast.metrics.ForecastMetrics` for forecasting.

    Raises:
        ArgumentError: The part is unknown, or the model cannot do the task, or not with these lengths.
        NotFiniteError: A forecast is NaN or infinite.
        ExhaustedError: There is not enough memory.
    """
    if part not in PARTS:
        raise ArgumentError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    tasks.check(adapter, data)
    device = resolve_device(device)
    progress = Silent() if progress is None else progress
    advice = f"try a smaller batch_size (--batch-size), it was {batch_size}; `sff-fast plan --memory` predicts what a run needs"
    progress.start(len(getattr(data, part)), f"evaluate {part}")
    try:
        with told(advice):
            adapter.model.to(device)
            return evaluate_windows(
                adapter,
                data,
                part,
                batch_size=batch_size,
                device=device,
                stop=StopRequest(group),
                progress=progress,
                parallel=Parallel(group),
                record=windows,
            )
    finally:
        progress.close()


def evaluate_windows(
    adapter: Any,
    data: ForecastData,
    part: str,
    *,
    batch_size: int,
    device: str,
    stop: StopRequest,
    progress: Progress,
    parallel: Parallel | None = None,
    record: WindowErrors | None = None,
    stages: Stages | None = None,
) -> dict[str, Any]:
    """The errors over a part, for a model that is on the device already.

    The global random generators are as before afterwards, and families that draw samples draw the same ones every time,
    so that when and how often a run validates changes nothing else. Several processes (``parallel``) deal out the batches of
    one, and each computes the errors of all. ``record`` receives the error of every window, ``stages`` are those of the run.

    Raises:
        Interrupted: A stop was asked for.
        NotFiniteError: A forecast is NaN or infinite.
    """
    windows = getattr(data, part)
    evaluation = tasks.evaluation(data, part)
    parallel = Parallel() if parallel is None else parallel

    def predict(indices: torch.Tensor) -> Any:
        # A seed of its own for each batch: errors of sampled forecasts must not be the same in all of them.
        return evaluation.predict(adapter, windows.batch(indices).to(device), seed=int(indices[0])).to("cpu")

    ceiling = Ceiling(SLACK)
    with contextlib.nullcontext() if stages is None else stages.evaluating(), seeded(0, device):
        for indices, output in parallel.each(torch.arange(len(windows)).split(batch_size), predict):
            batch = windows.batch(indices)
            errors = evaluation.update(output, batch)
            if record is not None:
                rows, channel = windows.positions(indices)
                record.add(rows, errors, channel)
            progress.update(len(indices), stage=part)
            if device == "cpu":
                ceiling.check()
            stop.check()
    return evaluation.to_json()


def measure(adapter: Any, data: ForecastData, part: str, record: WindowErrors | None = None, **options: Any) -> dict[str, Any]:
    """Like :func:`evaluate_windows`, but a model whose forecasts are not finite is a result, not an error.

    Returns:
        The errors; for such a model ``mse`` and ``mae`` are None, ``not_finite`` says where it was seen, and ``record`` is empty.
    """
    try:
        return evaluate_windows(adapter, data, part, record=record, **options)
    except NotFiniteError as error:
        if record is not None:
            record.clear()
        warnings.warn(f"{part} part: {error}", stacklevel=2)
        return {"mse": None, "mae": None, "not_finite": str(error)}
