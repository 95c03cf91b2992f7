"""``sff-fast evaluate``."""

from __future__ import annotations

import json
from typing import Any

import click

from sff_fast.cli.options import COUNT, data_options, json_option, machine_options, model_options, quiet_option, task_options
from sff_fast.cli.progress import make_progress


@click.command(short_help="Errors of a model over a part of the data.")
@model_options
@data_options
@task_options
@click.option("--part", type=click.Choice(("train", "val", "test")), default="test", help="Part of the data.")
@click.option("--batch-size", type=COUNT, metavar="N", default=256, help="Windows at a time.")
@machine_options
@json_option
@quiet_option
def evaluate(
    family: str,
    checkpoint: str | None,
    tiny: bool,
    part: str,
    batch_size: int,
    threads: int | None,
    device: str,
    as_json: bool,
    quiet: bool,
    task: str,
    mask_rates: tuple[float, ...] | None,
    patch_length: int | None,
    segment_length: int | None,
    **data_arguments: Any,
) -> None:
    """Measure the errors of a model, over all windows of a part."""
    from sff_fast.cli.sources import open_model, open_task, use_threads
    from sff_fast.cli.tables import FURTHER, print_errors
    from sff_fast.training import evaluate as library

    use_threads(threads)
    adapter = open_model(family, checkpoint, tiny)
    own = {"mask_rates": mask_rates, "patch_length": patch_length, "segment_length": segment_length}
    data = open_task(task, own, adapter, **data_arguments)
    errors = library(adapter, data, part, batch_size=batch_size, device=device, progress=make_progress(quiet))
    if as_json:
        click.echo(json.dumps({"family": family, "part": part, "data": data.describe(), "metrics": errors}, indent=2))
    else:
        windows = len(getattr(data, part))
        named = {"mse": "MSE", "mae": "MAE", **FURTHER}
        shown = {title: errors[name] for name, title in named.items() if errors.get(name) is not None}
        if len(errors.get("mse_per_rate", ())) > 1:
            shown.update({f"MSE {rate}": value for rate, value in errors["mse_per_rate"].items()})
        print_errors(f"{family} on {windows} windows of the {part} part (errors on standardised data)", shown)
