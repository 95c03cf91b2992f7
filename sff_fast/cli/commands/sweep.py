"""``sff-fast sweep``."""

from __future__ import annotations

from typing import Any

import click

from sff_fast.cli.job import Job
from sff_fast.cli.options import (
    STRATEGIES,
    chosen_seeds,
    data_options,
    job_options,
    model_options,
    seeds_options,
    training_options,
)
from sff_fast.cli.sources import ModelSource, WindowSource
from sff_fast.cli.types import GroupAlphas, Names, Number, Numbers

ALPHAS = (0.3, 0.5, 0.7, 0.85, 0.9, 0.95)
BASELINES = tuple(name for name in STRATEGIES if name not in ("zero-shot", "sff", "noise", "shrink", "perturb"))


@click.command(short_help="Which alpha? Chosen on validation, tested once.")
@model_options
@data_options
@click.option(
    "--alphas",
    type=Numbers(Number(0, 1)),
    metavar="X,Y,…",
    default=ALPHAS,
    show_default=",".join(f"{alpha:g}" for alpha in ALPHAS),
    help="Shares of the pre-trained weights to try.",
)
@click.option(
    "--alpha-groups",
    type=GroupAlphas(),
    metavar="NAME=X,Y,…",
    multiple=True,
    help="Alphas of a group alone: head, embedding, norms or a name pattern; --alphas are then those of the rest. Repeatable.",
)
@seeds_options
@click.option(
    "--baselines",
    type=Names("strategy", BASELINES),
    metavar="A,B,…",
    default=("ff", "tfs"),
    show_default="ff,tfs",
    help=f"Strategies to compare with, beside zero-shot: of {', '.join(BASELINES)}.",
)
@click.option("--halving", is_flag=True, help="Give seeds step by step, each time to the better half of the alphas.")
@training_options
@job_options(
    click.option("--out", metavar="DIR", required=True, help="Folder for the model, the metrics, the picture and the report.")
)
@click.pass_obj
def sweep(
    arguments: list[str],
    model: ModelSource,
    data: WindowSource,
    train_fraction: float,
    alphas: tuple[float, ...],
    alpha_groups: tuple[tuple[str, tuple[float, ...]], ...],
    seed: int | None,
    seeds: tuple[int, ...] | None,
    baselines: tuple[str, ...],
    halving: bool,
    job: Job,
    **settings: Any,
) -> int:
    """Smooth by several alphas from the same weights, choose one by validation, and test that one alone.

    Without --seed or --seeds every alpha gets 5 seeds.
    """
    numbers = tuple(range(5)) if seed is None and seeds is None else chosen_seeds(seed, seeds)
    groups = dict(alpha_groups)
    if len(groups) < len(alpha_groups):
        raise click.UsageError("--alpha-groups gives a group twice: list its alphas in one, such as head=0.5,0.9")

    job.begin()

    from sff_fast.cli import outcome
    from sff_fast.cli.tables import print_sweep
    from sff_fast.report.sweep import write_picture
    from sff_fast.training import sweep as library

    windows = data.windows(model(), train_fraction)
    result = library(
        model,
        windows,
        alphas,
        numbers,
        groups=groups,
        baselines=baselines,
        halving=halving,
        **job.settings(),
        **settings,
    )
    write_picture(job.out, result.metrics)
    if not job.as_json:
        print_sweep(result.metrics)
    return outcome.finish(job, result.metrics, result.runs, model, windows, arguments)
