"""``sff-fast plan``."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from sff_fast.cli.options import (
    COUNT,
    STRATEGIES,
    allow_pickle_option,
    device_option,
    json_option,
    memory_options,
    optimizer_option,
)

PACKAGE = Path(__file__).resolve().parents[2]


@click.command(short_help="Which distribution every parameter is drawn from; --memory: what a run needs.")
@click.option("--family", metavar="NAME", help="Model family or variant; `sff-fast doctor` lists them.")
@click.option("--checkpoint", metavar="PATH", help="Weights in the family's published layout: a file or folder.")
@click.option("--tiny", is_flag=True, help="A small random model of the family instead of --checkpoint.")
@allow_pickle_option
@click.option(
    "--factory",
    metavar="MODULE:CALLABLE",
    help="Instead of --family: a function or class without arguments that builds the model; it is run.",
)
@click.option("--save", "path", metavar="FILE", help="Also save the plan to this JSON file.")
@click.option("--memory", is_flag=True, help="Predict the peak memory of a fine-tuning run instead; what follows is for that.")
@click.option("--context-length", type=COUNT, metavar="N", help="Time steps that the model sees.")
@click.option("--prediction-length", type=COUNT, metavar="N", help="Time steps to forecast.")
@click.option("--channels", type=COUNT, metavar="N", default=1, help="Channels of the data.")
@click.option("--strategy", type=click.Choice(STRATEGIES), default="sff", help="How the model is tuned.")
@click.option("--batch-size", type=COUNT, metavar="N", default=32, help="Windows in a step.")
@optimizer_option
@memory_options
@device_option
@json_option
def plan(
    family: str | None,
    checkpoint: str | None,
    tiny: bool,
    factory: str | None,
    path: str | None,
    memory: bool,
    context_length: int | None,
    prediction_length: int | None,
    as_json: bool,
    **run: Any,
) -> None:
    """Show which distribution every parameter is drawn from by the model's own constructor.

    With --memory: predict the peak memory of a fine-tuning run, and what --max-memory would choose for it.
    """
    if (family is None) == (factory is None):
        raise click.UsageError("give either --family or --factory")
    if memory:
        if family is None or context_length is None or prediction_length is None:
            raise click.UsageError("--memory needs --family, --context-length and --prediction-length")
        if path is not None:
            raise click.UsageError("--memory makes no plan that --save could write: give one of them")
        from sff_fast.cli.footprint import show_memory
        from sff_fast.cli.sources import ModelSource

        show_memory(ModelSource(family, checkpoint, tiny)(), context_length, prediction_length, as_json=as_json, **run)
        return
    if factory is not None:
        if checkpoint is not None or tiny:
            raise click.UsageError("--checkpoint and --tiny belong to --family, not to --factory")
        from sff_fast.tracing import trace

        build = import_callable(factory)
        with users_code(f"--factory {factory}"):
            found = trace(build)
            if path is not None:
                found.save(path)  # runs it again where something is opaque
    else:
        from sff_fast.cli.sources import ModelSource

        found = ModelSource(family, checkpoint, tiny)().plan()
        if path is not None:
            found.save(path)
    click.echo(json.dumps({**found.to_json(), "totals": found.totals()}, indent=2) if as_json else str(found))


def import_callable(name: str) -> Callable[[], Any]:
    """Find ``module:callable``; the current folder is searched too, as ``python -m`` does.

    Raises:
        ArgumentError: The name has another form, or names nothing that can be called.
    """
    from sff_fast.errors import ArgumentError

    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise ArgumentError(f"--factory must be MODULE:CALLABLE, such as package.models:build, got {name!r}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    with users_code(f"--factory {name}, importing {module_name!r}"):
        try:
            target: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ArgumentError(f"--factory {name}: there is no module {error.name!r}") from error
    for part in path.split("."):
        if not hasattr(target, part):
            raise ArgumentError(f"--factory {name}: {module_name!r} has no {path!r}")
        target = getattr(target, part)
    if not callable(target):
        raise ArgumentError(f"--factory {name}: {path!r} is a {type(target).__name__}, not a function or class")
    needed = _arguments(target)
    if needed:
        raise ArgumentError(
            f"--factory {name}: {path!r} needs {', '.join(needed)}, expected a function or class that is called without "
            f"arguments: write one that calls it"
        )
    return target


def _arguments(target: Callable[..., Any]) -> list[str]:
    """The arguments that a call cannot do without; none where Python does not know."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:  # some classes written in C
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


@contextlib.contextmanager
def users_code(label: str) -> Iterator[None]:
    """Say in one line what a constructor raised and where; what sff_fast itself raises by mistake keeps its traceback.

    Raises:
        ArgumentError: The code raised an exception of its own.
    """
    from sff_fast.errors import ArgumentError, SffFastError

    try:
        yield
    except SffFastError:
        raise
    except Exception as error:  # a constructor may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        if Path(last.filename).is_relative_to(PACKAGE):
            raise
        where = "" if isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"
        raise ArgumentError(f"{label} raised {type(error).__name__}: {error}{where}") from error
