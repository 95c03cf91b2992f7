"""``sff-fast evaluate``."""

from __future__ import annotations

import json

import click

from sff_fast.cli.options import COUNT, data_options, json_option, machine_options, model_options, quiet_option
from sff_fast.cli.progress import make_progress
from sff_fast.cli.sources import ModelSource, WindowSource


@click.command(short_help="Errors of a model over a part of the data.")
@model_options
@data_options
@click.option("--part", type=click.Choice(("train", "val", "test")), default="test", help="Part of the data.")
@click.option("--batch-size", type=COUNT, metavar="N", default=256, help="Windows at a time.")
@machine_options
@json_option
@quiet_option
def evaluate(
    model: ModelSource,
    data: WindowSource,
    part: str,
    batch_size: int,
    threads: int | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure the errors of a model, over all windows of a part."""
    from sff_fast.cli.job import use_threads
    from sff_fast.cli.tables import print_errors
    from sff_fast.report.further import named_figures
    from sff_fast.training import evaluate as library

    use_threads(threads)
    adapter = model()
    windows = data.windows(adapter)
    errors = library(adapter, windows, part, batch_size=batch_size, device=device, progress=make_progress(quiet))
    if as_json:
        described = {"family": model.family, "part": part, "data": windows.describe(), "metrics": errors}
        click.echo(json.dumps(described, indent=2))
    else:
        count = len(getattr(windows, part))
        named = {"MSE": errors.get("mse"), "MAE": errors.get("mae"), **named_figures(errors)}
        shown = {title: value for title, value in named.items() if value is not None}
        print_errors(f"{model.family} on {count} windows of the {part} part (errors on standardised data)", shown)
