"""``sff-fast forecast``."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sff_fast.cli.options import COUNT, machine_options, model_options, seed_option, table_options
from sff_fast.cli.sources import ModelSource, TableSource

if TYPE_CHECKING:
    from sff_fast.training import TableForecast


@click.command(short_help="Forecast what follows a table, as CSV.")
@model_options
@table_options
@click.option("--context-length", type=COUNT, metavar="N", required=True, help="Time steps that the model sees: the last ones.")
@click.option("--prediction-length", type=COUNT, metavar="N", required=True, help="Time steps to forecast.")
@click.option(
    "--split",
    help="Standardise with the train part of this split, as the fine-tuning did.  [default: with the whole table]",
)
@seed_option
@click.option(
    "--num-samples",
    type=COUNT,
    metavar="N",
    show_default="the family's own",
    help="Sample paths, of families that forecast by drawing some; the quantiles in the CSV are theirs.",
)
@machine_options
@click.option("--out", metavar="FILE", help="CSV file to write.  [default: standard output]")
@click.option("--overwrite", is_flag=True, help="Replace the file of --out.")
def forecast(
    model: ModelSource,
    table: TableSource,
    context_length: int,
    prediction_length: int,
    split: str | None,
    seed: int,
    num_samples: int | None,
    threads: int | None,
    device: str,
    out: str | None,
    overwrite: bool,
) -> None:
    """Forecast what follows the end of a table, as CSV in the data's own units."""
    from sff_fast.cli.job import use_threads
    from sff_fast.data import Scaler, split_borders
    from sff_fast.data.forecast import without_constants
    from sff_fast.errors import OutputError
    from sff_fast.files import atomic_write
    from sff_fast.training import forecast as library

    if out is not None and Path(out).exists() and not overwrite:
        raise OutputError(f"--out {out!r} exists: give another file, or --overwrite to replace it")
    use_threads(threads)
    adapter = model()
    read = table.read()
    scaler = None
    if split is not None:
        borders = split_borders(len(read), split, context_length, prediction_length, read.source)
        read = without_constants(read, borders.train)
        scaler = Scaler.fit(read.values[slice(*borders.train)])
    result = library(
        adapter,
        read,
        context_length,
        prediction_length,
        scaler=scaler,
        device=device,
        seed=seed,
        num_samples=num_samples,
    )
    text = to_csv(result)
    if out is None:
        click.echo(text, nl=False)
    else:
        with atomic_write(out) as file:
            file.write(text.encode())


def to_csv(result: TableForecast) -> str:
    """A forecast as CSV: a row a step, a column a channel, quantiles as ``<channel>_q0.1``.

    The first column is ``date`` where the data had time stamps, else ``step``, counted from 1.
    """
    from sff_fast.data.validate import show_time

    levels = sorted(result.quantiles or {})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "step" if result.timestamps is None else "date",
            *result.columns,
            *(f"{column}_q{level:g}" for level in levels for column in result.columns),
        ]
    )
    for step, values in enumerate(result.mean):
        first = str(step + 1) if result.timestamps is None else show_time(result.timestamps[step])
        more = [value for level in levels for value in result.quantiles[level][step]]
        writer.writerow([first, *(repr(float(value)) for value in [*values, *more])])
    return buffer.getvalue()
