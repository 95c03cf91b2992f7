"""``sff-fast finetune``."""

from __future__ import annotations

from typing import Any

import click

from sff_fast.cli.exit_codes import DONE
from sff_fast.cli.job import Job
from sff_fast.cli.options import (
    alpha_option,
    data_options,
    job_options,
    model_options,
    parallel_option,
    seed_option,
    strategy_option,
    training_options,
)
from sff_fast.cli.sources import ModelSource, WindowSource


@click.command(short_help="Tune one model and test it.")
@model_options
@data_options
@strategy_option
@alpha_option
@seed_option
@training_options
@parallel_option
@job_options(click.option("--out", metavar="DIR", required=True, help="Folder for the model, the metrics and the report."))
@click.pass_obj
def finetune(
    arguments: list[str], model: ModelSource, data: WindowSource, train_fraction: float, job: Job, **settings: Any
) -> int:
    """Tune one model, test its best epoch, and say whether it beats the zero-shot model."""
    from sff_fast.cli import outcome
    from sff_fast.distributed import join
    from sff_fast.files import read_json
    from sff_fast.training import finetune as library

    with join(settings["device"]) as group:  # by itself a process is a group of one
        job.begin(group.lead)
        adapter = model()
        windows = data.windows(adapter, train_fraction)
        result = library(adapter, windows, **job.settings(), **settings)
    if not group.writes:
        return DONE  # torchrun ends the others as soon as one says more than that, also before the report is written
    metrics = read_json(f"{job.out}/metrics.json")
    return outcome.finish(job, metrics, [result] if metrics["runs"] else [], model, windows, arguments)
