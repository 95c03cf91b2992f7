"""``sff-fast compare``."""

from __future__ import annotations

from typing import Any

import click

from sff_fast.cli.job import Job
from sff_fast.cli.options import (
    alpha_option,
    alphas_option,
    chosen_seeds,
    data_options,
    job_options,
    model_options,
    one_of,
    seeds_options,
    strategies_options,
    training_options,
)
from sff_fast.cli.sources import ModelSource, WindowSource

DEFAULT_STRATEGIES = ("zero-shot", "ff", "sff")


@click.command(short_help="Tune by several strategies and seeds; which to ship?")
@model_options
@data_options
@strategies_options
@alpha_option
@alphas_option
@seeds_options
@training_options
@job_options(click.option("--out", metavar="DIR", help="Folder for the models, the metrics and the report.  [default: none]"))
@click.pass_obj
def compare(
    arguments: list[str],
    model: ModelSource,
    data: WindowSource,
    train_fraction: float,
    strategy: str | None,
    strategies: tuple[str, ...] | None,
    alpha: float | dict[str, float] | None,
    alphas: tuple[float, ...] | None,
    seed: int | None,
    seeds: tuple[int, ...] | None,
    job: Job,
    **settings: Any,
) -> int:
    """Tune by several strategies and seeds from the same weights, and say which model to ship."""
    one_of("--strategy", strategy, "--strategies", strategies)
    one_of("--alpha", alpha, "--alphas", alphas)
    chosen = strategies or ((strategy,) if strategy else DEFAULT_STRATEGIES)
    numbers = chosen_seeds(seed, seeds)
    job.begin()

    from sff_fast.cli import outcome
    from sff_fast.training import compare as library

    windows = data.windows(model(), train_fraction)
    shares = (alpha,) if alpha is not None else alphas
    result = library(model, windows, strategies=chosen, seeds=numbers, alphas=shares, **job.settings(), **settings)
    return outcome.finish(job, result.metrics, result.runs, model, windows, arguments)
