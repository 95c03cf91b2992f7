"""``sff-fast demo``."""

from __future__ import annotations

from dataclasses import replace

import click

from sff_fast.cli.job import Job
from sff_fast.cli.options import job_options, one_of, seeds_options
from sff_fast.cli.sources import ModelSource
from sff_fast.cli.types import Integer


@click.command(short_help="All of it on built-in data, in minutes.")
@seeds_options
@job_options(
    click.option(
        "--out",
        metavar="DIR",
        default="runs/demo",
        help="Folder for the models, the metrics, the pictures and the report.",
    ),
    click.option(
        "--threads",
        type=Integer(1, 4096),
        metavar="N",
        help="CPU threads, default 1: the model is too small to gain from several, which a busy machine makes very slow.",
    ),
)
@click.pass_obj
def demo(arguments: list[str], seed: int | None, seeds: tuple[int, ...] | None, device: str, job: Job) -> int:
    """Tune a small pre-trained Timer on a year of real weather: zero-shot, TFS, FF and SFF, in a few minutes.

    Model and data come with the package; nothing is downloaded. What is measured is printed, whatever it is.
    """
    one_of("--seed", seed, "--seeds", seeds)

    from sff_fast.cli import outcome
    from sff_fast.data import ForecastData
    from sff_fast.demo import model_path, settings, weather
    from sff_fast.training import compare

    job = replace(job, threads=settings.THREADS if job.threads is None else job.threads)
    job.begin()
    model = ModelSource("timer", str(model_path()), tiny=False)
    windows = ForecastData(
        weather(),
        settings.SPLIT,
        settings.CONTEXT_LENGTH,
        settings.PREDICTION_LENGTH,
        stride=settings.STRIDE,
        channel_independent=model().channel_independent,
    )
    result = compare(
        model,
        windows,
        strategies=settings.STRATEGIES,
        seeds=seeds or (settings.SEED if seed is None else seed,),
        alphas=(settings.ALPHA,),
        **job.settings(),
        epochs=settings.EPOCHS,
        batch_size=settings.BATCH_SIZE,
        lr=settings.LR,
        schedule=settings.SCHEDULE,
        device=device,
    )
    return outcome.finish(job, result.metrics, result.runs, model, windows, arguments)
