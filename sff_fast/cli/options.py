"""Options that several commands share, in groups that a command takes as one decorator, and mostly one argument, each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from sff_fast.cli.job import Job
from sff_fast.cli.sources import ModelSource, TableSource, WindowSource
from sff_fast.cli.types import MAX_SEED, Alpha, Columns, Integer, Names, Number, Numbers, Seeds

Function = TypeVar("Function", bound=Callable[..., Any])

# Written out, so that --help needs no torch; a test compares them with the library's own lists.
STRATEGIES = (
    *("zero-shot", "tfs", "ff", "sff", "lp", "lp-ff"),
    *("noise", "shrink", "perturb", "l2-sp", "l2-init", "mixout", "ema", "lora", "sam"),
)
SCHEDULES = ("halving", "constant", "cosine")
PRECISIONS = ("fp32", "bf16", "bf16-sr")
OPTIMIZERS = ("adam", "adamw", "fused-adam", "fused-adamw")
OPTIMIZER_STATES = ("float32", "bfloat16", "int8")
RNGS = ("philox", "torch")
FILLS = ("interpolate", "ffill")
PARALLEL = ("ddp", "fsdp")
TASKS = ("forecast", "imputation", "anomaly")

COUNT = Integer(1)


def _group(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator, shown in --help in the order given."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _allow_pickle(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Allow pickled weights until the command ends."""
    if value:
        from sff_fast.adapters.checkpoint import pickles_allowed

        ctx.with_resource(pickles_allowed())


allow_pickle_option = click.option(
    "--allow-pickle",
    is_flag=True,
    expose_value=False,
    callback=_allow_pickle,
    help="Also read weights that torch.save wrote (.ckpt, .pt, .pth, .bin): their tensors alone.",
)


def _gathered(argument: str, kind: type, *options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator that gives the command one argument.

    Args:
        argument: Its name.
        kind: A dataclass. Options that it has no field for reach the command by themselves.
        options: The options, shown in --help in the order given.
    """
    taken = [field.name for field in fields(kind)]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)  # takes over the options that the function already has
        def command(*args: Any, **kwargs: Any) -> Any:
            gathered = kind(**{name: kwargs.pop(name) for name in taken})
            return function(*args, **{argument: gathered}, **kwargs)

        return _group(*options)(command)

    return decorate


model_options = _gathered(
    "model",
    ModelSource,
    click.option(
        "--family", metavar="NAME", required=True, help="Model family, or one of its variants; `sff-fast doctor` lists them."
    ),
    click.option("--checkpoint", metavar="PATH", help="Weights in the family's published layout: a file or folder."),
    click.option("--tiny", is_flag=True, help="A small random model of the family instead of --checkpoint."),
    allow_pickle_option,
)

_table_options = _group(
    click.option("--data", metavar="FILE", required=True, help="CSV, parquet or .npy; a date column is found."),
    click.option("--date-column", metavar="NAME", show_default="found", help="Column of time stamps."),
    click.option(
        "--id-column",
        metavar="NAME",
        show_default="found where time stamps repeat",
        help="Column that tells the series of each row of a long table; its series become channels.",
    ),
    click.option(
        "--columns", type=Columns(), metavar="A,B,…", show_default="all numeric ones", help="Columns of values, in this order."
    ),
)
_gap_options = _group(
    click.option("--fill", type=click.Choice(FILLS), help="Fill gaps in the data: a straight line, or the value before."),
    click.option("--drop", is_flag=True, help="Leave out what cannot be used: rows with gaps, text, constant channels."),
)

table_options = _gathered("table", TableSource, _table_options, _gap_options)

_window_options = _group(
    click.option(
        "--split",
        metavar="SPLIT",
        default="0.7,0.1,0.2",
        help="ett-hour, ett-minute, or the shares of train, validation and test.",
    ),
    click.option("--context-length", type=COUNT, metavar="N", help="Time steps that the model sees; needed to forecast."),
    click.option("--prediction-length", type=COUNT, metavar="N", help="Time steps to forecast; needed to forecast."),
    click.option("--stride", type=COUNT, metavar="N", default=1, help="Time steps from one window to the next."),
)
_task_options = _group(
    click.option("--task", type=click.Choice(TASKS), default="forecast", help="What the model is tuned and tested for."),
    click.option(
        "--mask-rate",
        "mask_rates",
        type=Numbers(Number(0, 1, open_low=True)),
        metavar="X,Y,…",
        show_default="0.25",
        help="imputation: shares of the patches to hide, 0.125,0.25,0.375,0.5 in the paper.",
    ),
    click.option(
        "--patch-length", type=COUNT, metavar="N", show_default="24", help="imputation: time steps that are hidden together."
    ),
    click.option(
        "--segment-length", type=COUNT, metavar="N", show_default="96", help="anomaly: time steps that get one score together."
    ),
)

data_options = _gathered("data", WindowSource, _table_options, _window_options, _gap_options, _task_options)

optimizer_option = click.option(
    "--optimizer",
    type=click.Choice(OPTIMIZERS),
    show_default="adam, or fused-adam where an option needs it",
    help="Optimizer.",
)
memory_options = _group(
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        show_default="fp32",
        help="Precision of the parameters; bf16-sr rounds stochastically.",
    ),
    click.option("--optimizer-state", type=click.Choice(OPTIMIZER_STATES), help="Precision of a fused optimizer's states."),
    click.option(
        "--release-gradients",
        is_flag=True,
        default=None,
        help="Step inside the backward pass and free the gradients; the same result.",
    ),
    click.option(
        "--activation-checkpointing",
        is_flag=True,
        default=None,
        help="Compute activations again in the backward pass; the same result, about a third slower.",
    ),
    click.option(
        "--micro-batch", type=COUNT, metavar="N", show_default="the batch", help="Windows in memory at a time; gradients add up."
    ),
    click.option(
        "--max-memory", metavar="SIZE", help="Peak memory, such as 6G: chooses those of these options that are not given."
    ),
)

method_options = _group(
    click.option(
        "--penalty", type=Number(0), metavar="X", show_default="0.1, 0.01", help="Strength of the penalty of l2-sp and l2-init."
    ),
    click.option(
        "--mixout-p",
        type=Number(0, 0.999),
        metavar="X",
        show_default="0.9",
        help="Probability with which mixout puts a pre-trained weight into a step.",
    ),
    click.option(
        "--ema-decay", type=Number(0, 1), metavar="X", show_default="0.999", help="Decay of ema's average; 1: all steps alike."
    ),
    click.option("--lora-rank", type=COUNT, metavar="N", show_default="8", help="Rank of the updates of lora."),
    click.option(
        "--sam-rho", type=Number(0, open_low=True), metavar="X", show_default="0.05", help="How far uphill sam takes gradients."
    ),
)

training_options = _group(
    click.option("--epochs", type=COUNT, metavar="N", default=10, help="Passes over the training windows, at most."),
    click.option("--batch-size", type=COUNT, metavar="N", default=32, help="Windows in a step."),
    click.option(
        "--lr",
        type=Number(0, open_low=True),
        metavar="X",
        show_default="the family's own",
        help="Learning rate at the beginning.",
    ),
    click.option("--schedule", type=click.Choice(SCHEDULES), default="halving", help="How the learning rate falls."),
    click.option("--max-steps", type=COUNT, metavar="N", help="Optimizer steps, at most."),
    click.option(
        "--train-fraction",
        type=Number(0, 1, open_low=True),
        metavar="X",
        default=1.0,
        help="Share of the training part to train on (few-shot).",
    ),
    click.option(
        "--patience", type=COUNT, metavar="N", default=3, help="Epochs without a better validation MSE before stopping."
    ),
    optimizer_option,
    click.option("--weight-decay", type=Number(0), metavar="X", default=0.0, help="Weight decay."),
    click.option("--grad-clip", type=Number(0, open_low=True), metavar="X", help="Largest norm of the gradient."),
    memory_options,
    click.option("--lp-epochs", type=COUNT, metavar="N", show_default="half", help="Epochs of lp-ff that train the head alone."),
    method_options,
    click.option("--keep-initial", is_flag=True, help="Let the weights before training be a candidate for the best."),
    click.option(
        "--rng",
        type=click.Choice(RNGS),
        default="philox",
        help="Random weights of sff and tfs: the stream of sff-fast, or the bits of torch.manual_seed(seed) and the constructor.",
    ),
    click.option("--again", is_flag=True, help="Smooth a model that has been smoothed before."),
    click.option(
        "--checkpoint-every",
        type=COUNT,
        metavar="N",
        show_default="an epoch",
        help="Save the state for --resume every N steps too.",
    ),
    click.option("--deterministic", is_flag=True, help="Deterministic algorithms and one thread: the same bits again."),
)

device_option = click.option("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:N.")
threads_option = click.option("--threads", type=Integer(1, 4096), metavar="N", show_default="torch's choice", help="CPU threads.")
machine_options = _group(threads_option, device_option)

parallel_option = click.option(
    "--parallel",
    type=click.Choice(PARALLEL),
    show_default="ddp under torchrun",
    help="Several processes, started by torchrun: each with the whole model, or with a shard (FSDP2).",
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress; results and errors only.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def job_options(
    out: Callable[[Function], Function], threads: Callable[[Function], Function] = threads_option
) -> Callable[[Function], Function]:
    """The options of :class:`Job`, and ``--device``.

    Args:
        out: The option ``--out``.
        threads: The option ``--threads``.
    """
    return _gathered(
        "job",
        Job,
        out,
        click.option("--resume", is_flag=True, help="Go on with the interrupted run in --out."),
        click.option("--overwrite", is_flag=True, help="Replace the finished run in --out."),
        threads,
        device_option,
        json_option,
        quiet_option,
    )


seed_option = click.option(
    "--seed", type=Integer(0, MAX_SEED), metavar="N", default=0, help="Seed of the random draw and of the batches."
)
seeds_options = _group(
    click.option("--seed", type=Integer(0, MAX_SEED), metavar="N", show_default="0", help="One seed."),
    click.option("--seeds", type=Seeds(), metavar="N,M,…", help="Several seeds: a list such as 0,1,2, or how many."),
)
strategy_option = click.option("--strategy", type=click.Choice(STRATEGIES), default="sff", help="How the model is tuned.")
strategies_options = _group(
    click.option("--strategy", type=click.Choice(STRATEGIES), help="One strategy."),
    click.option(
        "--strategies",
        type=Names("strategy", STRATEGIES),
        metavar="A,B,…",
        show_default="zero-shot,ff,sff",
        help=f"Several, of {', '.join(STRATEGIES)}; zero-shot is always measured.",
    ),
)
alpha_option = click.option(
    "--alpha",
    type=Alpha(),
    metavar="X",
    show_default="the family's own",
    help="Share of the pre-trained weights in sff and what is like it, 0 to 1; or one a pattern: 'head.*=1,*=0.7'.",
)
alphas_option = click.option(
    "--alphas", type=Numbers(Number(0, 1)), metavar="X,Y,…", help="Several shares for sff, such as 0.5,0.7,0.9."
)


def one_of(first: str, first_value: Any, second: str, second_value: Any) -> None:
    """Refuse two options that say the same thing.

    Raises:
        click.UsageError: Both were given.
    """
    if first_value is not None and second_value is not None:
        raise click.UsageError(f"{first} and {second} exclude each other: give one of them")


def chosen_seeds(seed: int | None, seeds: tuple[int, ...] | None) -> tuple[int, ...]:
    """The seeds of ``--seed`` or ``--seeds``; seed 0 where neither is given."""
    one_of("--seed", seed, "--seeds", seeds)
    if seeds is not None:
        return seeds
    return (0 if seed is None else seed,)
