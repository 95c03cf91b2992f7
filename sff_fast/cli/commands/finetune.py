"""``sff-fast finetune``."""

from __future__ import annotations

from typing import Any

import click

from sff_fast.cli.options import (
    alpha_option,
    data_options,
    json_option,
    machine_options,
    model_options,
    out_options,
    parallel_option,
    quiet_option,
    seed_option,
    strategy_option,
    task_options,
    training_options,
)
from sff_fast.cli.progress import make_progress


@click.command(short_help="Tune one model and test it.")
@model_options
@data_options
@task_options
@strategy_option
@alpha_option
@seed_option
@training_options
@parallel_option
@click.option("--out", metavar="DIR", required=True, help="Folder for the model, the metrics and the report.")
@out_options
@machine_options
@json_option
@quiet_option
@click.pass_obj
def finetune(
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
    train_fraction: float,
    task: str,
    mask_rates: tuple[float, ...] | None,
    patch_length: int | None,
    segment_length: int | None,
    strategy: str,
    out: str,
    resume: bool,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Tune one model, test its best epoch, and say whether it beats the zero-shot model."""
    from sff_fast import report
    from sff_fast.cli import outcome
    from sff_fast.cli.sources import model_maker, open_task, use_threads
    from sff_fast.distributed import join
    from sff_fast.files import check_output_directory, read_json
    from sff_fast.training import finetune as library

    report.check_packages()
    with join(settings["device"]) as group:  # by itself a process is a group of one
        group.lead(lambda: check_output_directory(out, overwrite=overwrite, resume=resume))
        use_threads(threads)
        make_adapter = model_maker(family, checkpoint, tiny)
        adapter = make_adapter()
        own = {"mask_rates": mask_rates, "patch_length": patch_length, "segment_length": segment_length}
        windows = open_task(
            task, own, adapter, data, split, context_length, prediction_length, stride, fill, drop, train_fraction=train_fraction
        )
        result = library(
            adapter,
            windows,
            strategy=strategy,
            out=out,
            resume=resume,
            overwrite=overwrite,
            progress=make_progress(quiet),
            **settings,
        )
    if not group.writes:
        return
    metrics = read_json(f"{out}/metrics.json")
    outcome.finish(out, metrics, [result] if metrics["runs"] else [], make_adapter, windows, arguments, as_json)
