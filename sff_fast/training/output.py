"""The folder that a run or comparison writes into."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from ..errors import ArgumentError, OutputError
from ..files import check_output_directory, claimed_directory, make_directory, remove

P = ParamSpec("P")
R = TypeVar("R")

WRITTEN = (
    "metrics.json",
    "state",
    "memory.json",
    "report.html",
    "learning_curves.png",
    "forecasts.png",
    "comparison.png",
    "imputation.png",
    "anomaly.png",
    "alphas.png",
    "landscape.csv",
    "contours.png",
    "surfaces.png",
    "landscape",
    "log.jsonl",
    "model",
    "runs",
    "windows",
    "sweep.png",
)
"""What a run or comparison writes into its folder, in the order in which ``overwrite`` removes it: first what makes the rest a
run that is finished or can be resumed."""

COMPARISON = "comparison.json"
"""In ``state/``, marks a folder that holds a comparison of runs, not a run."""


def check_output(out: str | Path, resume: bool, overwrite: bool, source: Path | None) -> Path:
    """Check that a run may write into a folder; nothing is written yet.

    Raises:
        ArgumentError: The run to overwrite holds the model to start from.
        OutputError: The folder cannot be used.
    """
    folder = Path(out)
    check_output_directory(folder, overwrite=overwrite, resume=resume)
    _check_links(folder)
    if overwrite and source is not None and folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise ArgumentError(f"overwrite would remove the model to start from, {str(source)!r}: choose another output folder")
    return folder


def _check_links(folder: Path) -> None:
    """Refuse links by which a run would write outside of its folder.

    Raises:
        OutputError: There is one.
    """
    root = folder.resolve()
    for name in WRITTEN:
        path = folder / name
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
        for one in (path, *inside):
            if one.is_symlink() and not one.resolve().is_relative_to(root):
                raise OutputError(
                    f"{str(one)!r} is a link out of the output folder, to {str(one.resolve())!r}, where a run does not "
                    "write: remove it, or choose another folder"
                )


def begin_output(folder: Path, overwrite: bool) -> None:
    """Make an output folder, or remove the earlier run in it.

    Raises:
        OutputError: The folder cannot be made, or something in it cannot be removed.
    """
    make_directory(folder)
    for name in WRITTEN if overwrite else ():
        remove(folder / name)


def alone_in_output(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function with the arguments ``out``, ``resume`` and ``overwrite`` have its output folder for itself.

    Raises:
        OutputError: Another process, or another run of this one, writes into the folder.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        out, options = given.arguments["out"], given.arguments
        if out is None:
            return function(*args, **kwargs)
        with claimed_directory(out, overwrite=options["overwrite"], resume=options["resume"]):
            return function(*args, **kwargs)

    return alone
