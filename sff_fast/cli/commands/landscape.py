"""``sff-fast landscape``."""

from __future__ import annotations

import json
from typing import Any

import click

from sff_fast.cli.job import Job
from sff_fast.cli.options import COUNT, data_options, job_options, model_options, seed_option
from sff_fast.cli.sources import ModelSource, WindowSource
from sff_fast.cli.types import Alpha, Integer, Number


@click.command(short_help="The loss around pre-trained, smoothed and tuned weights.")
@model_options
@data_options
@click.option("--tuned", metavar="DIR", multiple=True, help="A fine-tuned model, or the folder of its run; may be repeated.")
@click.option(
    "--alpha",
    type=Alpha(),
    metavar="X",
    show_default="the family's own",
    help="Share of the pre-trained weights in the smoothed ones; 1 leaves these out.",
)
@seed_option
@click.option("--grid", type=Integer(5, 1001), metavar="N", default=21, help="Points along each direction, an odd number.")
@click.option(
    "--span", type=Number(0, open_low=True), metavar="X", default=1.0, help="Greatest coordinate, in norms of the filters."
)
@click.option("--windows", type=COUNT, metavar="N", default=64, help="Validation windows that the loss is measured on.")
@click.option("--batch-size", type=COUNT, metavar="N", default=64, help="Windows at a time.")
@click.option(
    "--no-hessian",
    "hessian",
    flag_value=False,
    default=True,
    show_default=False,
    help="Leave the Hessian's eigenvalue and trace out.",
)
@click.option("--probes", type=COUNT, metavar="N", default=16, help="Random vectors for the trace.")
@job_options(click.option("--out", metavar="DIR", help="Folder for the grid, the pictures and the report.  [default: none]"))
@click.pass_obj
def landscape(arguments: list[str], model: ModelSource, data: WindowSource, grid: int, job: Job, **settings: Any) -> None:
    """Measure the loss over two random directions around the pre-trained, the smoothed and any fine-tuned weights."""
    if grid % 2 == 0:
        raise click.UsageError(f"--grid must be odd, so that one point is the centre, got {grid}")
    job.begin()

    from sff_fast import report
    from sff_fast.cli.tables import print_landscape
    from sff_fast.landscapes import landscape as library

    adapter = model()
    windows = data.windows(adapter)
    plan_hash = adapter.plan().hash
    del adapter
    result = library(model, windows, grid=grid, **job.settings(unit="points"), **settings)
    if job.out is not None:
        shown = [argument for argument in arguments if argument not in ("--resume", "--overwrite")]
        report.write_landscape(job.out, result.metrics, arguments=shown, facts={"plan_hash": plan_hash})
    if job.as_json:
        click.echo(json.dumps(result.metrics, indent=2))
        return
    print_landscape(result.metrics)
    if job.out is not None:
        click.echo(f"\nreport: {job.out}/report.html")
