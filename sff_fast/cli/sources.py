"""Opens what the options name. Everything here fails before a folder is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sff_fast.adapters import Adapter
    from sff_fast.data import ForecastData


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
    context_length: int,
    prediction_length: int,
    stride: int,
    fill: str | None,
    drop: bool,
    train_fraction: float = 1.0,
) -> ForecastData:
    """Read the table and cut it into windows as the model's family wants them."""
    from sff_fast.data import ForecastData, read_table

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


def use_threads(threads: int | None) -> None:
    """Set torch's threads within an operation, where a number was given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
