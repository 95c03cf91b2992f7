"""Opens what the options name. Everything here fails before a folder is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sff_fast.adapters import Adapter
    from sff_fast.data import AnomalyData, ForecastData

_OWN_OPTIONS = {"forecast": (), "imputation": ("mask_rates", "patch_length"), "anomaly": ("segment_length",)}
_OPTION_NAMES = {"mask_rates": "--mask-rate", "patch_length": "--patch-length", "segment_length": "--segment-length"}


def check_model_options(family: str, checkpoint: str | None, tiny: bool) -> None:
    """Refuse an unknown family, and anything but one of ``--checkpoint`` and ``--tiny``.

    Raises:
        ArgumentError: There is no such family; the message lists those that there are.
        click.UsageError: Both or neither of the two options were given.
    """
    from sff_fast.adapters import families
    from sff_fast.errors import ArgumentError

    known = families()
    if family not in known:
        raise ArgumentError(f"unknown family {family!r}: expected one of {', '.join(known)}")
    if tiny == (checkpoint is not None):
        raise click.UsageError("give either --checkpoint PATH or --tiny (a small random model of the family)")


def open_model(family: str, checkpoint: str | None, tiny: bool) -> Adapter:
    """Load the checkpoint, or make the tiny model."""
    from sff_fast import adapters

    check_model_options(family, checkpoint, tiny)
    return adapters.tiny(family) if tiny else adapters.load(family, checkpoint)


def model_maker(family: str, checkpoint: str | None, tiny: bool) -> Callable[[], Adapter]:
    """A function that opens the same model anew each time it is called."""
    return lambda: open_model(family, checkpoint, tiny)


def open_data(
    adapter: Adapter,
    data: str,
    split: str,
    context_length: int | None,
    prediction_length: int | None,
    stride: int,
    fill: str | None,
    drop: bool,
    train_fraction: float = 1.0,
) -> ForecastData:
    """Read the table and cut it into windows as the model's family wants them.

    Raises:
        click.UsageError: A length is missing.
    """
    from sff_fast.data import ForecastData, read_table

    for name, value in (("--context-length", context_length), ("--prediction-length", prediction_length)):
        if value is None:
            raise click.UsageError(f"Missing option '{name}'.")
    adapter.check_lengths(context_length, prediction_length)
    table = read_table(data, fill=fill, drop=drop)
    return ForecastData(
        table,
        split,
        context_length,
        prediction_length,
        stride=stride,
        channel_independent=adapter.channel_independent,
        train_fraction=train_fraction,
    )


def open_task(
    task: str,
    own: Mapping[str, Any],
    adapter: Adapter,
    data: str,
    split: str,
    context_length: int | None,
    prediction_length: int | None,
    stride: int,
    fill: str | None,
    drop: bool,
    train_fraction: float = 1.0,
) -> ForecastData | AnomalyData:
    """Read the data and cut it into windows of a task.

    Args:
        task: ``"forecast"``, ``"imputation"`` or ``"anomaly"``.
        own: The tasks' own options; those of another task must be None.
        adapter: The model.
        data: As for :func:`open_data`, and so on.

    Raises:
        ArgumentError: The model cannot do the task.
        click.UsageError: An option is missing, or means nothing to the task.
    """
    from sff_fast import tasks
    from sff_fast.data import AnomalyData, ImputationData, read_table

    given = {name: value for name, value in own.items() if value is not None}
    for name in given:
        if name not in _OWN_OPTIONS[task]:
            raise click.UsageError(f"{_OPTION_NAMES[name]} means nothing to --task {task}: leave it out")
    if task == "forecast":
        return open_data(adapter, data, split, context_length, prediction_length, stride, fill, drop, train_fraction)
    if prediction_length is not None:
        raise click.UsageError(f"--prediction-length means nothing to --task {task}: leave it out")
    adapter.check_task(task, context_length)
    if context_length is not None:
        given["context_length"] = context_length
    given.update(stride=stride, train_fraction=train_fraction)
    if task == "imputation":
        table = read_table(data, fill=fill, drop=drop)
        found = ImputationData(table, split, channel_independent=adapter.channel_independent, **given)
    elif drop:
        raise click.UsageError("--drop would move the labels of --task anomaly: leave it out, and fill gaps with --fill")
    else:
        found = AnomalyData.from_ucr(data, fill=fill, **given)
    tasks.check(adapter, found)
    return found


def use_threads(threads: int | None) -> None:
    """Set torch's threads within an operation, where a number was given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
