"""``sff-fast sweep``."""

from __future__ import annotations

from typing import Any

import click

from sff_fast.cli.options import (
    STRATEGIES,
    chosen_seeds,
    data_options,
    json_option,
    machine_options,
    model_options,
    out_options,
    quiet_option,
    seeds_options,
    task_options,
    training_options,
)
from sff_fast.cli.progress import make_progress
from sff_fast.cli.types import GroupAlphas, Names, Number, Numbers

ALPHAS = (0.3, 0.5, 0.7, 0.85, 0.9, 0.95)
BASELINES = tuple(name for name in STRATEGIES if name not in ("zero-shot", "sff", "noise", "shrink", "perturb"))


@click.command(short_help="Which alpha? Chosen on validation, tested once.")
@model_options
@data_options
@task_options
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
@click.option("--out", metavar="DIR", required=True, help="Folder for the model, the metrics, the picture and the report.")
@out_options
@machine_options
@json_option
@quiet_option
@click.pass_obj
def sweep(
    arguments: list[str],
    family: str,
    checkpoint: str | None,
    tiny: bool,
    data: str,
    split: str,
    context_length: int | None,
    prediction_length: int | None,
    stride: int,
    fill: str | None,
    drop: bool,
    train_fraction: float,
    task: str,
    mask_rates: tuple[float, ...] | None,
    patch_length: int | None,
    segment_length: int | None,
    alphas: tuple[float, ...],
    alpha_groups: tuple[tuple[str, tuple[float, ...]], ...],
    seed: int | None,
    seeds: tuple[int, ...] | None,
    baselines: tuple[str, ...],
    halving: bool,
    out: str,
    resume: bool,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Smooth by several alphas from the same weights, choose one by validation, and test that one alone.

    Without --seed or --seeds every alpha gets 5 seeds.
    """
    numbers = tuple(range(5)) if seed is None and seeds is None else chosen_seeds(seed, seeds)
    groups = dict(alpha_groups)
    if len(groups) < len(alpha_groups):
        raise click.UsageError("--alpha-groups gives a group twice: list its alphas in one, such as head=0.5,0.9")

    from sff_fast import report
    from sff_fast.cli import outcome
    from sff_fast.cli.sources import model_maker, open_task, use_threads
    from sff_fast.cli.tables import print_sweep
    from sff_fast.files import check_output_directory
    from sff_fast.report.sweep import write_picture
    from sff_fast.training import sweep as library

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
        alphas,
        numbers,
        out,
        groups=groups,
        baselines=baselines,
        halving=halving,
        resume=resume,
        overwrite=overwrite,
        progress=make_progress(quiet),
        **settings,
    )
    write_picture(out, result.metrics)
    if not as_json:
        print_sweep(result.metrics)
    outcome.finish(out, result.metrics, result.runs, make_adapter, windows, arguments, as_json)
