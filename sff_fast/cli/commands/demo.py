"""``sff-fast demo``."""

from __future__ import annotations

import click

from sff_fast.cli.options import device_option, json_option, one_of, out_options, quiet_option, seeds_options
from sff_fast.cli.progress import make_progress
from sff_fast.cli.types import Integer


@click.command(short_help="All of it on built-in data, in minutes.")
@seeds_options
@click.option(
    "--out",
    metavar="DIR",
    default="runs/demo",
    help="Folder for the models, the metrics, the pictures and the report.",
)
@out_options
@click.option(
    "--threads",
    type=Integer(1, 4096),
    metavar="N",
    help="CPU threads, default 1: the model is too small to gain from several, which a busy machine makes very slow.",
)
@device_option
@json_option
@quiet_option
@click.pass_obj
def demo(
    arguments: list[str],
    seed: int | None,
    seeds: tuple[int, ...] | None,
    out: str,
    resume: bool,
    overwrite: bool,
    threads: int | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tune a small pre-trained Timer on a year of real weather: zero-shot, TFS, FF and SFF, in a few minutes.

    Model and data come with the package; nothing is downloaded. What is measured is printed, whatever it is.
    """
    one_of("--seed", seed, "--seeds", seeds)

    from sff_fast import report
    from sff_fast.cli import outcome
    from sff_fast.cli.sources import model_maker, use_threads
    from sff_fast.data import ForecastData
    from sff_fast.demo import model_path, settings, weather
    from sff_fast.files import check_output_directory
    from sff_fast.training import compare

    report.check_packages()
    check_output_directory(out, overwrite=overwrite, resume=resume)
    use_threads(settings.THREADS if threads is None else threads)
    make_adapter = model_maker("timer", str(model_path()), tiny=False)
    windows = ForecastData(
        weather(),
        settings.SPLIT,
        settings.CONTEXT_LENGTH,
        settings.PREDICTION_LENGTH,
        stride=settings.STRIDE,
        channel_independent=make_adapter().channel_independent,
    )
    result = compare(
        make_adapter,
        windows,
        strategies=settings.STRATEGIES,
        seeds=seeds or (settings.SEED if seed is None else seed,),
        alphas=(settings.ALPHA,),
        out=out,
        resume=resume,
        overwrite=overwrite,
        progress=make_progress(quiet),
        epochs=settings.EPOCHS,
        batch_size=settings.BATCH_SIZE,
        lr=settings.LR,
        schedule=settings.SCHEDULE,
        device=device,
    )
    outcome.finish(out, result.metrics, result.runs, make_adapter, windows, arguments, as_json)
