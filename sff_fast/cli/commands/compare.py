"""``sff-fast compare``."""

from __future__ import annotations

from typing import Any

import click

from sff_fast.cli.options import (
    alpha_option,
    alphas_option,
    chosen_seeds,
    data_options,
    json_option,
    machine_options,
    model_options,
    one_of,
    out_options,
    quiet_option,
    seeds_options,
    strategies_options,
    task_options,
    training_options,
)
from sff_fast.cli.progress import make_progress

DEFAULT_STRATEGIES = ("zero-shot", "ff", "sff")


@click.command(short_help="Tune by several strategies and seeds; which to ship?")
@model_options
@data_options
@task_options
@strategies_options
@alpha_option
@alphas_option
@seeds_options
@training_options
@click.option("--out", metavar="DIR", help="Folder for the models, the metrics and the report.  [default: none]")
@out_options
@machine_options
@json_option
@quiet_option
@click.pass_obj
def compare(
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
    strategy: str | None,
    strategies: tuple[str, ...] | None,
    alpha: float | dict[str, float] | None,
    alphas: tuple[float, ...] | None,
    seed: int | None,
    seeds: tuple[int, ...] | None,
    out: str | None,
    resume: bool,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Tune by several strategies and seeds from the same weights, and say which model to ship."""
    one_of("--strategy", strategy, "--strategies", strategies)
    one_of("--alpha", alpha, "--alphas", alphas)
    chosen = strategies or ((strategy,) if strategy else DEFAULT_STRATEGIES)
    numbers = chosen_seeds(seed, seeds)
    if out is None and (resume or overwrite):
        raise click.UsageError("--resume and --overwrite need --out")

    from sff_fast import report
    from sff_fast.cli import outcome
    from sff_fast.cli.sources import model_maker, open_task, use_threads
    from sff_fast.files import check_output_directory
    from sff_fast.training import compare as library

    if out is not None:
        report.check_packages()
        check_output_directory(out, overwrite=overwrite, resume=resume)
    use_threads(threads)
    make_adapter = model_maker(family, checkpoint, tiny)
    own = {"mask_rates": mask_rates, "patch_length": patch_length, "segment_length": segment_length}
    lengths = (context_length, prediction_length, stride)
    windows = open_task(task, own, make_adapter(), data, split, *lengths, fill, drop, train_fraction=train_fraction)
    result = library(
        make_adapter,
        windows,
        strategies=chosen,
        seeds=numbers,
        alphas=(alpha,) if alpha is not None else alphas,
        out=out,
        resume=resume,
        overwrite=overwrite,
        progress=make_progress(quiet),
        **settings,
    )
    outcome.finish(out, result.metrics, result.runs, make_adapter, windows, arguments, as_json)
