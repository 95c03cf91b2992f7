"""``sff-fast landscape``."""

from __future__ import annotations

import json

import click

from sff_fast.cli.options import (
    COUNT,
    data_options,
    json_option,
    machine_options,
    model_options,
    out_options,
    quiet_option,
    seed_option,
)
from sff_fast.cli.progress import make_progress
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
@click.option("--out", metavar="DIR", help="Folder for the grid, the pictures and the report.  [default: none]")
@out_options
@machine_options
@json_option
@quiet_option
@click.pass_obj
def landscape(
    arguments: list[str],
    family: str,
    checkpoint: str | None,
    tiny: bool,
    data: str,
    split: str,
    context_length: int,
    prediction_length: int,
    stride: int,
    fill: str | None,
    drop: bool,
    tuned: tuple[str, ...],
    alpha: float | dict[str, float] | None,
    seed: int,
    grid: int,
    span: float,
    windows: int,
    batch_size: int,
    hessian: bool,
    probes: int,
    out: str | None,
    resume: bool,
    overwrite: bool,
    threads: int | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure the loss over two random directions around the pre-trained, the smoothed and any fine-tuned weights."""
    if out is None and (resume or overwrite):
        raise click.UsageError("--resume and --overwrite need --out")
    if grid % 2 == 0:
        raise click.UsageError(f"--grid must be odd, so that one point is the centre, got {grid}")

    from sff_fast import report
    from sff_fast.cli.sources import model_maker, open_data, use_threads
    from sff_fast.cli.tables import print_landscape
    from sff_fast.files import check_output_directory
    from sff_fast.landscapes import landscape as library

    if out is not None:
        report.check_packages()
        check_output_directory(out, overwrite=overwrite, resume=resume)
    use_threads(threads)
    make_adapter = model_maker(family, checkpoint, tiny)
    adapter = make_adapter()
    table = open_data(adapter, data, split, context_length, prediction_length, stride, fill, drop)
    plan_hash = adapter.plan().hash
    del adapter
    result = library(
        make_adapter,
        table,
        alpha=alpha,
        tuned=tuned,
        grid=grid,
        span=span,
        windows=windows,
        batch_size=batch_size,
        seed=seed,
        hessian=hessian,
        probes=probes,
        device=device,
        out=out,
        resume=resume,
        overwrite=overwrite,
        progress=make_progress(quiet, unit="points"),
    )
    if out is not None:
        shown = [argument for argument in arguments if argument not in ("--resume", "--overwrite")]
        report.write_landscape(out, result.metrics, arguments=shown, facts={"plan_hash": plan_hash})
    if as_json:
        click.echo(json.dumps(result.metrics, indent=2))
        return
    print_landscape(result.metrics)
    if out is not None:
        click.echo(f"\nreport: {out}/report.html")
