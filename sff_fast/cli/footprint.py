"""``sff-fast plan --memory``: what a fine-tuning run will need at its peak, and what ``--max-memory`` would choose."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sff_fast.adapters import Adapter
    from sff_fast.data import ForecastData

ROWS = (
    ("process", "interpreter, libraries, data"),
    ("weights", "weights and buffers"),
    ("states", "optimizer states"),
    ("best", "copy of the best weights"),
    ("gradients", "gradients, at the peak of a training step"),
    ("activations", "activations and all else, at that peak"),
    ("training", "peak of a training step"),
    ("evaluating", "peak of an evaluation"),
    ("peak", "peak of the run"),
)
SEVERAL = (
    ("kept", "pre-trained weights that compare and sweep keep on the host"),
    ("peak", "peak of compare and sweep"),
)
"""Of several runs in one process."""


def show_memory(
    adapter: Adapter, context_length: int, prediction_length: int, channels: int, as_json: bool, **given: Any
) -> None:
    """Predict the peak memory of a run on data of so many channels, and print it.

    Args:
        adapter: The model; its precision may be changed.
        context_length: Time steps that the model sees.
        prediction_length: Time steps to forecast.
        channels: Channels of the data.
        as_json: Print JSON.
        **given: Options of ``finetune``.
    """
    from sff_fast import report
    from sff_fast.training import finetune
    from sff_fast.training.config import resolve_settings
    from sff_fast.training.fit import CHOSEN, fit_settings, size_text, way_text
    from sff_fast.training.memory import MemoryModel
    from sff_fast.training.pristine import host_bytes_of
    from sff_fast.training.strategies import check_predicted

    report.check_packages()  # a run does, which loads them
    adapter.check_lengths(context_length, prediction_length)
    taken = inspect.signature(resolve_settings).parameters
    defaults = {name: p.default for name, p in inspect.signature(finetune).parameters.items() if name in taken}
    arguments = {name: value for name, value in {**defaults, **given}.items() if name != "adapter"}
    settings = resolve_settings(adapter, **arguments)
    check_predicted(settings.strategy)
    windows = max(settings.batch_size, settings.eval_batch_size)
    data = noise(context_length, prediction_length, channels, windows, adapter.channel_independent)
    # Before the model is cast: only what is bit for bit the checkpoint's is read from there again.
    kept = host_bytes_of(adapter.model, adapter.source) if settings.device == "cpu" else 0
    if settings.max_memory is not None:
        settings, footprint = fit_settings(adapter, data, settings, given, in_memory=False)
    else:
        footprint = MemoryModel(adapter, data, settings, in_memory=False).predict(settings)
    several = {"kept": kept, "peak": dataclasses.replace(footprint, kept=kept).peak}
    if as_json:
        chosen = {name: getattr(settings, name) for name in CHOSEN}
        click.echo(json.dumps({"settings": chosen, "predicted": footprint.to_json(), "several": several}, indent=2))
        return
    click.echo(way_text(settings))
    for rows, values in ((ROWS, footprint.to_json()), (SEVERAL, several)):
        for name, meaning in rows:
            click.echo(f"{size_text(values[name]):>12}  {meaning}")


def noise(context_length: int, prediction_length: int, channels: int, windows: int, channel_independent: bool) -> ForecastData:
    """Random data whose train, validation and test parts have at least so many windows each."""
    import numpy as np

    from sff_fast.data import ForecastData, Table

    rows = math.ceil((context_length + prediction_length + windows) / 0.3) + 4
    values = np.random.default_rng(0).normal(size=(rows, channels))
    table = Table(values, [f"channel{i}" for i in range(channels)])
    return ForecastData(table, "0.4,0.3,0.3", context_length, prediction_length, channel_independent=channel_independent)
